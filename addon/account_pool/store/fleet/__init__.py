"""A store in Redis or Valkey, for several machines (docs/fleet.md).

Reading order: `connection` and `engine` (how the functions are called that run in the engine),
then the halves of the store. Its URL is read in `pool_state`, beside this folder.
"""
