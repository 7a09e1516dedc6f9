"""accounts.yaml and the options: what the owner of the accounts wrote, checked as a whole.

Reading order: `configuration` (what comes out, also without a file), `document` (YAML with line
numbers, from `yaml_nodes`), `shapes` (the shape), `providers` (that section), `loader` (the
accounts, and all of it), `options` (the table of options), `accounts_file` (which file it is),
`edit` (changing it), `review` (credentials that cannot be read now).

Without accounts.yaml the proxy starts without `loader`, which is imported by `accounts_file`
where there is a file to read.
"""
