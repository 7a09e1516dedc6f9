-- The functions that run in the engine, as a library (FUNCTION LOAD), or as a script (EVALSHA)
-- where functions are refused. engine.py puts the files of functions/ in place of the mark.
--
-- A file adds to F: F.name = function(keys, args, now) ... end, from the beginning of a line.
--   keys: names of keys, all of one pool; keys.pool is what they begin with, "{ap:<pool>}".
--   args: strings. now: the engine's clock, seconds; all calls of one function see the same.
--   It returns a string, an integer, false for nothing, or a list of such; JSON is its own
--   affair. redis.error_reply("UNFIT why") and ("DAMAGED why") become the errors of store.py.
-- Outside of functions there is none of Lua's own: no pairs, no string, no cjson.
-- Functions write what they are given where the versions that were read are still the current
-- ones. They know no policy: that is Python's (core/).
local F = {}
-- By name: {"no-writes"} for one that only reads: it runs when the engine is out of memory.
local FLAGS = {}

-- A number as text from which the same number is read; tostring() keeps 14 digits.
local function text(number)
  return string.format("%.17g", number)
end

--{functions}

local function answer(name, keys, args)
  local run = F[name]
  if not run then
    return redis.error_reply("ERR no function " .. name)
  end
  local time = redis.call("TIME")
  local names = { pool = keys[1] }
  for i = 2, #keys do
    names[i - 1] = keys[i]
  end
  local value = run(names, args, tonumber(time[1]) + tonumber(time[2]) / 1e6)
  if type(value) == "table" and value.err then
    return value
  end
  return { time[1], time[2], value }
end
