"""accounts.yaml and the options: what the owner of the accounts wrote, checked as a whole.

Which file does what stands in docs/code.md. Without accounts.yaml the proxy starts without
`loader`, which is imported by `accounts_file` where there is a file to read.
"""
