"""How many files of the package a request passes, and how often control changes file.

What is read to understand one request, counted: the fewer files and the fewer changes from
one to another, the shorter the way. Speed is measured elsewhere. Three scenarios, each on a
connection that is kept and warm, through a real mitmdump with `addon/pool.py`:

- an ordinary request: it begins a conversation, the answer is small JSON, there are three accounts;
- a failover: the first account answers 429, the second 200;
- a later chunk: one event of a stream that has been committed.

What is counted, over the frames of Python functions that are defined in `addon/account_pool`:

- *calls*: how often one is entered, or resumed if it is a generator or a coroutine.
  Comprehensions are not frames of their own in every Python and are left out.
- *files*: in how many files the functions stand that are entered.
- *changes*: calls of a function in another file than that of the call before. The first call
  is one. A return is none: whoever reads on after it is counted when that calls again.

Only the thread of the event loop is looked at, and the tasks that run in the background before
the request begins are left out. What happens only now and then (a table that is looked up
anew every second) is left out as well: each scenario is recorded several times, and the
recording with the fewest calls counts.

Reading order: `recorder` (the second addon), `way` (what is counted in a recording),
`scenarios` (what is recorded), `__main__` (the command).
"""
