"""What the pool knows about each API family. Values and pure functions, no I/O.

Reading order: `base` (the shape of a provider, and what it sees of a request), `openai` (the
one to copy), then `anthropic`, `gemini`, `copilot`; then the subscriptions, whose tokens serve
one client each: `claude_code`, `codex`, `gemini_cli`. `compatible` builds the vendors with
OpenAI's API that `compatible_vendors` describes; `azure` is beside them. `unswappable` says
what cannot be pooled and why. `registry` lists them and finds whose host is whose;
`definition` makes more of them, from `builtin.yaml` and from what users write.

What a refusal means stands in each provider's table of rules for the engine in `core/signals`,
with their sources; `common_signals` holds what all of them share. `token_forms` reads
tokens, `envelopes` writes the pool's own refusals.
"""
