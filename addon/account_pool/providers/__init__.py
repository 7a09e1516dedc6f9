"""What the pool knows about each API family. Values and pure functions, no I/O.

Reading order: `base` (the shape of a provider), `openai` (the one to copy), then
`anthropic`, `gemini`, `copilot`; then the subscriptions, whose tokens serve one client
each: `claude_code`, `codex`, `gemini_cli`. `compatible` builds the vendors with OpenAI's API
that `compatible_vendors` describes; `azure` is beside them. `unswappable` says what cannot
be pooled and why. `registry` lists them, makes services of a user's own and finds whose
host is whose.

What a refusal means stands in `<name>_signals`: tables for the engine in
`core/signals`, with their sources. `compatible_signals` holds what services with
an OpenAI-compatible API have in common. `request_head` reads requests, `json_span` changes
one member of a body, `jwt` reads tokens, `envelopes` writes the pool's own refusals.
"""
