"""A store in Redis or Valkey, for several machines (docs/fleet.md).

Reading order: `url` (what `pool_state` names), `library` (functions that run in the engine),
`connection` and `engine` (how they are called), then the halves of the store.
"""
