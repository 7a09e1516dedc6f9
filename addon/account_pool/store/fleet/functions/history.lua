-- What happened: a log of requests and their prices, and the last decisions.
--
-- Keys, each after "{ap:<pool>}:".
--   log          a stream: k is the kind of an entry, t when it was added, d what it says. The id
--                of an entry is 0-<its number>, which is never given twice.
--   unpriced     numbers of rows that nobody has looked for a price of
--   unknown      numbers of rows of which no price was known: they may be looked at again
--   decided      <who decided>:<its number there> -> "<number> <change> <what it says>"
--   decided:n, decided:c   these by number, and by the number of their last change
--   decided:m    id (names this log), n and c (the last number and change)

-- Numbers in a call of another function: Lua has no room for many more on its stack.
local SOME = 1000
-- Bytes of rows in one answer.
local PAGE = 4194304

local function number_of(id)
  return tonumber(string.match(id, "-(%d+)$"))
end

local function id_of(number)
  return "0-" .. string.format("%d", number)
end

local function entry_at(log, number)
  return redis.call("XRANGE", log, id_of(number), id_of(number))[1]
end

-- The fields of an entry: its kind, when it was added, and what it says.
local function fields_of(entry)
  local fields = {}
  for n = 1, #entry[2], 2 do
    fields[entry[2][n]] = entry[2][n + 1]
  end
  return fields.k or "", fields.t or "", fields.d or ""
end

-- An entry as it is told of: its number and these, with spaces between them.
local function told(entry)
  local kind, at, data = fields_of(entry)
  return string.format("%d", number_of(entry[1])) .. " " .. kind .. " " .. at .. " " .. data
end

-- When an entry was added.
local function time_of(entry)
  local _, at = fields_of(entry)
  return at
end

-- The number of the last entry there ever was, and of the first that is there.
local function ends(log)
  if redis.call("EXISTS", log) == 0 then
    return 0, 1
  end
  local info, last = redis.call("XINFO", "STREAM", log), 0
  for n = 1, #info, 2 do
    if info[n] == "last-generated-id" then
      last = number_of(info[n + 1])
    end
  end
  local first = redis.call("XRANGE", log, "-", "+", "COUNT", 1)[1]
  return last, first and number_of(first[1]) or last + 1
end

-- Add entries, called by F.commit. Arguments: how many entries there are at most; of each its
-- kind and what it says. "row" is one of a request that has a price or needs none, "unpriced"
-- another one.
F.append = function(keys, args, now)
  local log = keys.pool .. ":log"
  for n = 2, #args, 2 do
    local id = redis.call("XADD", log, "MAXLEN", "~", args[1], "0-*", "k", args[n], "t", text(now), "d", args[n + 1])
    if args[n] == "unpriced" then
      local number = string.format("%d", number_of(id))
      redis.call("ZADD", keys.pool .. ":unpriced", number, number)
    end
  end
end

-- Take numbers of rows from those without a price, called by F.commit. Arguments: the set to
-- which they go ("": none), the numbers.
F.note_priced = function(keys, args)
  for n = 2, #args do
    redis.call("ZREM", keys.pool .. ":unpriced", args[n])
    if args[1] ~= "" then
      redis.call("ZADD", keys.pool .. ":" .. args[1], args[n], args[n])
    end
  end
end

-- Have rows looked at again of which no price was known, called by F.commit.
F.note_repriced = function(keys)
  local unpriced, unknown = keys.pool .. ":unpriced", keys.pool .. ":unknown"
  redis.call("ZUNIONSTORE", unpriced, 2, unpriced, unknown)
  redis.call("DEL", unknown)
end

-- Entries that follow one. Arguments: its number, when it was added, how many at most.
-- Returns "anew" where that entry is not there any more, or is another; else the numbers of the
-- first entry and of the last one ever, and entries.
FLAGS.entries = { "no-writes" }
F.entries = function(keys, args)
  local log, after = keys.pool .. ":log", tonumber(args[1])
  local last, first = ends(log)
  if after > 0 then
    local known = entry_at(log, after)
    if after > last or known and time_of(known) ~= args[2] or not known and after < last then
      return { "anew" }
    end
  end
  local rows, bytes = { string.format("%d", first), string.format("%d", last) }, 0
  for _, entry in ipairs(redis.call("XRANGE", log, "(" .. id_of(after), "+", "COUNT", args[3])) do
    local row = told(entry)
    bytes = bytes + #row
    if bytes > PAGE and #rows > 2 then
      break
    end
    table.insert(rows, row)
  end
  return rows
end

-- Of the rows with these numbers those without a price.
local function rows_of(keys, numbers)
  local rows = {}
  for _, number in ipairs(numbers) do
    local is_open = redis.call("ZSCORE", keys.pool .. ":unpriced", number)
    local entry = is_open and entry_at(keys.pool .. ":log", tonumber(number))
    if entry then
      table.insert(rows, told(entry))
    end
  end
  return rows
end

-- Rows that nobody has looked for a price of. Arguments: the number they come after, how many.
FLAGS.unpriced = { "no-writes" }
F.unpriced = function(keys, args)
  local _, first = ends(keys.pool .. ":log")
  local after = string.format("(%d", math.max(tonumber(args[1]), first - 1))
  return rows_of(keys, redis.call("ZRANGEBYSCORE", keys.pool .. ":unpriced", after, "+inf", "LIMIT", 0, args[2]))
end

-- The same of rows with some numbers. Arguments: these.
FLAGS.still_unpriced = { "no-writes" }
F.still_unpriced = function(keys, args)
  return rows_of(keys, args)
end

-- Delete old entries. Arguments: their age in seconds, 0: all; how many at most.
-- Returns 1 if there may be more.
F.prune = function(keys, args, now)
  local log, kept = keys.pool .. ":log", tonumber(args[1])
  local more, last = 0, nil
  if kept <= 0 then
    last = ends(log)
  else
    local function is_old(entry)
      local at = tonumber(time_of(entry))
      return not at or at < now - kept
    end
    -- Mostly there is nothing to do.
    local found = redis.call("XRANGE", log, "-", "+", "COUNT", 1)
    if found[1] and is_old(found[1]) then
      found = redis.call("XRANGE", log, "-", "+", "COUNT", args[2])
    end
    more = #found == tonumber(args[2]) and 1 or 0
    for _, entry in ipairs(found) do
      if not is_old(entry) then
        more = 0
        break
      end
      last = number_of(entry[1])
    end
  end
  if last then
    redis.call("XTRIM", log, "MINID", id_of(last + 1))
  end
  local _, first = ends(log)
  for _, set in ipairs({ ":unpriced", ":unknown" }) do
    redis.call("ZREMRANGEBYSCORE", keys.pool .. set, "-inf", "(" .. string.format("%d", first))
  end
  return more
end

-- Add decisions. Arguments: the name of a new log; how many are kept; how many of those that follow
-- are new: who and number there, and what each says. Returns the name of the log.
F.decide = function(keys, args)
  local hash = keys.pool .. ":decided"
  local meta, by_number, by_change = hash .. ":m", hash .. ":n", hash .. ":c"
  redis.call("HSETNX", meta, "id", args[1])
  local change = redis.call("HINCRBY", meta, "c", 1)
  for n = 4, #args, 2 do
    local name = args[n]
    local number = redis.call("ZSCORE", by_number, name)
    if not number and n < 4 + 2 * tonumber(args[3]) then
      number = redis.call("HINCRBY", meta, "n", 1)
    end
    if number then
      local numbers = string.format("%d %d ", number, change)
      redis.call("HSET", hash, name, numbers .. args[n + 1])
      redis.call("ZADD", by_number, number, name)
      redis.call("ZADD", by_change, change, name)
    end
  end
  local over = redis.call("ZCARD", by_number) - tonumber(args[2])
  if over > 0 then
    for _, name in ipairs(redis.call("ZRANGE", by_number, 0, over - 1)) do
      redis.call("HDEL", hash, name)
      redis.call("ZREM", by_number, name)
      redis.call("ZREM", by_change, name)
    end
  end
  return redis.call("HGET", meta, "id")
end

-- Decisions that have changed. Arguments: after which change.
-- Returns the name of the log, the number of its last change, and of each who and number there, and
-- its row.
FLAGS.decisions = { "no-writes" }
F.decisions = function(keys, args)
  local hash = keys.pool .. ":decided"
  local meta = redis.call("HMGET", hash .. ":m", "id", "c")
  local rows = { meta[1] or "", meta[2] or "0" }
  local found = redis.call("ZRANGEBYSCORE", hash .. ":c", "(" .. args[1], "+inf", "LIMIT", 0, SOME)
  for _, name in ipairs(found) do
    table.insert(rows, name)
    table.insert(rows, redis.call("HGET", hash, name) or "")
  end
  return rows
end
