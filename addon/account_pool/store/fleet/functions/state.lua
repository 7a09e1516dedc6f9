-- What a pool has learnt: rows with versions, lines of which the one used last stays, and sums.
--
-- A row is "<version> <at> <data>": the number of the write that changed it last, a time, and
-- whatever Python makes of it. The number grows with each row that is written; the indexes
-- ("i", "j") order rows by it, so that what is new is found without reading everything.
--
-- Keys, each after "{ap:<pool>}:".
--   m            id (names this history), v (the last number), at (when an account or a line was
--                written last)
--   a            account -> row;  last use: when it was written, or was configured
--   sessions ... key -> row of a line: at is its last use, data "<gone at or -> <account>"
--   i            index of these
--   f, who       proxy -> row: requests in flight; which process it is
--   share        account -> row: how its slots are divided
--   j            index of these
--   px, about    proxies by their last heartbeat; what each says of itself
--   b            who writes -> row: the number of the last batch
--   c, c:<name>, c:<name>:<key>   names of sums; their keys by last addition; amounts by field

-- Larger numbers are not exact in Lua.
local MOST = 4503599627370496
-- Bytes of rows in one answer, and of one row: whatever is longer was not written by a proxy.
local PAGE, LONGEST = 262144, 1048576
-- Rows that are looked at in one call at most.
local ROWS = 1000

local TYPES = {
  m = "hash", a = "hash", sessions = "hash", pins = "hash", i = "zset", f = "hash", who = "hash",
  share = "hash", j = "zset", px = "zset", about = "hash", notices = "hash", turns = "hash", b = "hash", c = "set",
  -- of history.lua
  pricing = "hash", log = "stream", unpriced = "zset", unknown = "zset", decided = "hash",
  ["decided:m"] = "hash", ["decided:n"] = "zset", ["decided:c"] = "zset",
}

local function is_of(key, wanted)
  local found = redis.call("TYPE", key).ok
  return found == "none" or found == wanted
end

local INDEX = { f = "j", who = "j", share = "j", notices = "", turns = "", pricing = "" }

local function index_of(hash)
  return INDEX[hash] or "i"
end

-- Version, time and data of a row; version 0 of none, and of what no proxy has written.
local function parts(row)
  if not row or #row > LONGEST then
    return 0
  end
  local version, at, data = string.match(row, "^(%d+) ([%d.e+-]+) (.*)$")
  version, at = tonumber(version), tonumber(at)
  if not version or not at or version > MOST or math.abs(at) > MOST then
    return 0
  end
  return version, at, data
end

local function highest(keys, index)
  local last = redis.call("ZREVRANGEBYSCORE", keys.pool .. index, MOST, 0, "WITHSCORES", "LIMIT", 0, 1)
  return tonumber(last[2]) or 0
end

-- What names the history: another one has lost what this one had. A server that takes over, or
-- starts again, may have lost the last writes.
local function head(keys)
  local found = redis.call("HMGET", keys.pool .. ":m", "id", "v", "at")
  local v = tonumber(found[2])
  if not v or v < 0 or v > MOST or v % 1 ~= 0 then
    v = math.max(highest(keys, ":i"), highest(keys, ":j"))
  end
  if not found[1] then
    return "", v, "0"
  end
  local at = tonumber(found[3])
  at = at and math.abs(at) <= MOST and text(at) or "0"
  local info = redis.pcall("INFO", "server")
  local run = type(info) == "string" and string.match(info, "run_id:(%w+)") or ""
  return found[1] .. "@" .. run, v, at
end

local function put(keys, hash, name, version, at, data)
  local index = index_of(hash)
  redis.call("HSET", keys.pool .. ":" .. hash, name, string.format("%d ", version) .. at .. " " .. data)
  if index ~= "" then
    redis.call("ZADD", keys.pool .. ":" .. index, version, hash .. ":" .. name)
  end
end

local function remove(keys, hash, name)
  redis.call("HDEL", keys.pool .. ":" .. hash, name)
  if index_of(hash) ~= "" then
    redis.call("ZREM", keys.pool .. ":" .. index_of(hash), hash .. ":" .. name)
  end
end

local function is_live(keys, proxy, now, grace)
  local seen = redis.call("ZSCORE", keys.pool .. ":px", proxy)
  return seen and math.abs(tonumber(seen) - now) < grace
end

local function running(keys, now, grace)
  return redis.call("ZRANGEBYSCORE", keys.pool .. ":px", "(" .. text(now - grace), "(" .. text(now + grace))
end

local function forget(keys, proxy)
  redis.call("ZREM", keys.pool .. ":px", proxy)
  remove(keys, "f", proxy)
  remove(keys, "who", proxy)
  redis.call("HDEL", keys.pool .. ":about", proxy)
end

-- Returns a function that gives one argument after the other, and one that gives the next `width`
-- as often as the argument before them says.
local function reader(args)
  local at = 0
  local function take()
    at = at + 1
    return args[at]
  end
  local function each(width)
    local left = tonumber(take())
    return function()
      if left == 0 then
        return nil
      end
      left = left - 1
      at = at + width
      return args[at - width + 1], args[at - width + 2], args[at - width + 3], args[at - width + 4]
    end
  end
  return take, each
end

-- Write all of it, or nothing.
-- Arguments: the history that is known ("": none), and the name of a new one; who writes, its
-- number, and that of its last write that was accepted; the proxy, which must be running
-- ("": need not) within a grace, and is told of to others ("": is not).
-- Then, each with how many there are:
--   proxies that are not running
--   rows: hash, name, version ("*": any), data ("": only has to be of that version)
--   lines: table, key, last use, account ("": is taken out if it was not used since)
--   batches: who, number: what follows is done only where it is new
--   sums: name, key, field, amount
--   calls of other functions: name, and how many arguments; after all of them the arguments
-- Returns "lost"; "last" and the number; "dead"; "alive" and who; "stale" and hash, name, row
-- of each; or "ok", the history, the numbers before and after, when an account was written last.
F.commit = function(keys, args, now)
  local take, each = reader(args)
  local known, fresh, writer, number, before = take(), take(), take(), take(), take()
  local proxy, grace, told, rounded = take(), tonumber(take()), take(), tonumber(take())
  for name, wanted in pairs(TYPES) do
    if not is_of(keys.pool .. ":" .. name, wanted) then
      return redis.error_reply("DAMAGED " .. name)
    end
  end
  local id, v, wrote_at = head(keys)
  if known ~= "" and known ~= id then
    return { "lost" }
  end
  local last = parts(redis.call("HGET", keys.pool .. ":b", writer))
  if last ~= tonumber(before) then
    return { "last", string.format("%d", last) }
  end
  if proxy ~= "" and not is_live(keys, proxy, now, grace) then
    return { "dead" }
  end
  local alive = { "alive" }
  for dead in each(1) do
    if is_live(keys, dead, now, grace) then
      table.insert(alive, dead)
    end
  end
  if #alive > 1 then
    return alive
  end
  local stale, rows = { "stale" }, {}
  for hash, name, version, data in each(4) do
    local found = redis.call("HGET", keys.pool .. ":" .. hash, name)
    if version ~= "*" and parts(found) ~= tonumber(version) then
      table.insert(stale, hash)
      table.insert(stale, name)
      table.insert(stale, found and #found <= LONGEST and found or "")
    elseif data ~= "" then
      table.insert(rows, { hash, name, data })
    end
  end
  if #stale > 1 then
    return stale
  end
  -- From here on nothing may fail: what is written stays.
  local version, time, is_shared = v, text(now), false
  for _, row in ipairs(rows) do
    version = version + 1
    put(keys, row[1], row[2], version, time, row[3])
    is_shared = is_shared or row[1] == "a"
  end
  for hash, key, used, account in each(4) do
    local was, at, data = parts(redis.call("HGET", keys.pool .. ":" .. hash, key))
    local there = was > 0 and string.sub(data, 1, 2) == "- "
    local new
    if account == "" then
      new = there and at <= tonumber(used) + rounded and time .. " " .. string.sub(data, 3)
      used = new and text(at)
    elseif was == 0 or at + (there and 0 or rounded) <= tonumber(used) then
      new = "- " .. account
      new = not (there and data == new and at == tonumber(used)) and new
    end
    if new then
      version = version + 1
      put(keys, hash, key, version, used, new)
      is_shared = true
    end
  end
  local is_new = true
  for who, batch in each(2) do
    is_new = parts(redis.call("HGET", keys.pool .. ":b", who)) < tonumber(batch)
    if is_new then
      redis.call("HSET", keys.pool .. ":b", who, batch .. " " .. time .. " ")
    end
  end
  for name, key, field, amount in each(4) do
    if is_new then
      local sums = keys.pool .. ":c:" .. name
      if not is_of(sums, "zset") then
        redis.call("DEL", sums)
      end
      if not is_of(sums .. ":" .. key, "hash") then
        redis.call("DEL", sums .. ":" .. key)
      end
      if type(redis.pcall("HINCRBYFLOAT", sums .. ":" .. key, field, amount)) == "table" then
        redis.call("HSET", sums .. ":" .. key, field, amount) -- was no number
      end
      redis.call("ZADD", sums, now, key)
      redis.call("SADD", keys.pool .. ":c", name)
    end
  end
  local calls = {}
  for name, count in each(2) do
    table.insert(calls, { name, tonumber(count) })
  end
  for _, call in ipairs(calls) do
    local more = {}
    for _ = 1, call[2] do
      table.insert(more, take())
    end
    if is_new then
      F[call[1]](keys, more, now)
    end
  end
  redis.call("HSET", keys.pool .. ":b", writer, number .. " " .. time .. " ")
  if id == "" then
    redis.call("HSET", keys.pool .. ":m", "id", fresh)
    id = head(keys)
  end
  if is_shared then
    redis.call("HSET", keys.pool .. ":m", "at", time)
  end
  if version > v then
    redis.call("HSET", keys.pool .. ":m", "v", string.format("%d", version))
    if told ~= "" then
      redis.call("PUBLISH", keys.pool .. ":news", told)
    end
  end
  return { "ok", id, string.format("%d", v), string.format("%d", version), wrote_at }
end

local function newer(keys, index, since, rows)
  local found = redis.call(
    "ZRANGEBYSCORE", keys.pool .. ":" .. index, "(" .. text(since), MOST, "WITHSCORES", "LIMIT", 0, ROWS
  )
  local bytes, upto = 0, #found < 2 * ROWS and "" or found[#found]
  for i = 1, #found, 2 do
    local hash, name = string.match(found[i], "^(%w+):(.*)$")
    local row = hash and redis.call("HGET", keys.pool .. ":" .. hash, name)
    if row and #row <= LONGEST then
      bytes = bytes + #row
      if bytes > PAGE and i > 1 then
        return found[i - 1]
      end
      table.insert(rows, hash)
      table.insert(rows, name)
      table.insert(rows, row)
    end
  end
  return upto
end

-- What is new since two numbers, of the indexes "i" and "j".
-- Arguments: the history that is known; the numbers ("": what is there already is not new); the grace of a heartbeat; "1": who is running
-- is asked for also if nothing has changed.
-- Returns "lost"; or "ok", the history and the last number; and if that is another one, or it is
-- asked for: up to which numbers it is told ("": all), when an account was written last, the
-- proxies that are running, and hash, name and row of each that is new.
FLAGS.look = { "no-writes" }
F.look = function(keys, args, now)
  local known, grace = args[1], tonumber(args[4])
  local id, v, wrote_at = head(keys)
  local i, j = tonumber(args[2]) or v, tonumber(args[3])
  if known ~= "" and known ~= id or v < i or v < j then
    return { "lost" }
  end
  local all = string.format("%d", v)
  if v == i and v == j and args[5] ~= "1" then
    return { "ok", id, all }
  end
  local rows = {}
  local upto_j = newer(keys, "j", j, rows)
  local upto_i = newer(keys, "i", i, rows)
  return { "ok", id, all, upto_i, upto_j, wrote_at, running(keys, now, grace), rows }
end

-- Arguments: a hash, names. Returns the rows, "" for none.
FLAGS.rows = { "no-writes" }
F.rows = function(keys, args)
  local rows = {}
  for n = 2, #args do
    local row = redis.call("HGET", keys.pool .. ":" .. args[1], args[n])
    table.insert(rows, row and #row <= LONGEST and row or "")
  end
  return rows
end

-- Arguments: a hash, a cursor ("0" at first). Returns the next one, and names and rows.
FLAGS.page = { "no-writes" }
F.page = function(keys, args)
  local found = redis.call("HSCAN", keys.pool .. ":" .. args[1], args[2], "COUNT", ROWS)
  local rows = {}
  for n = 1, #found[2], 2 do
    if #found[2][n + 1] <= LONGEST then
      table.insert(rows, found[2][n])
      table.insert(rows, found[2][n + 1])
    end
  end
  return { found[1], rows }
end

-- Arguments: the name of sums, a cursor. Returns the next one, and key and fields of each.
FLAGS.sums = { "no-writes" }
F.sums = function(keys, args)
  local sums = keys.pool .. ":c:" .. args[1]
  local found = redis.call("ZSCAN", sums, args[2], "COUNT", 100)
  local rows = {}
  for n = 1, #found[2], 2 do
    table.insert(rows, found[2][n])
    table.insert(rows, redis.call("HGETALL", sums .. ":" .. found[2][n]))
  end
  return { found[1], rows }
end

-- A heartbeat. Arguments: the history; the proxy; "": it counts as running, else the one in whose
-- place it comes ("-": none); the grace; how long those that have stopped theirs are shown;
-- which process it is; its requests in flight; what it says of itself ("": as before).
-- Returns "lost"; "dead" where it does not count as running, and nothing is done; or "ok", the
-- history, the numbers before and after, the proxies that are running.
F.beat = function(keys, args, now)
  local known, proxy, before, grace, shown = args[1], args[2], args[3], tonumber(args[4]), tonumber(args[5])
  local id, v = head(keys)
  if known ~= "" and known ~= id then
    return { "lost" }
  end
  if before == "" and not is_live(keys, proxy, now, grace) then
    return { "dead" }
  end
  forget(keys, before)
  local px = keys.pool .. ":px"
  for _, old in ipairs(redis.call("ZRANGEBYSCORE", px, "-inf", text(now - shown), "LIMIT", 0, ROWS)) do
    forget(keys, old)
  end
  -- Further ahead than any could be: seen before the clock was set back.
  for _, ahead in ipairs(redis.call("ZRANGEBYSCORE", px, text(now + grace), "+inf", "LIMIT", 0, ROWS)) do
    redis.call("ZADD", px, now - grace, ahead)
  end
  redis.call("ZADD", px, now, proxy)
  if args[8] ~= "" then
    redis.call("HSET", keys.pool .. ":about", proxy, args[8])
  end
  local version = v
  for n, hash in ipairs({ "who", "f" }) do
    local _, _, data = parts(redis.call("HGET", keys.pool .. ":" .. hash, proxy))
    if data ~= args[5 + n] then
      version = version + 1
      put(keys, hash, proxy, version, text(now), args[5 + n])
    end
  end
  if version > v then
    redis.call("HSET", keys.pool .. ":m", "v", string.format("%d", version))
  end
  return { "ok", id, string.format("%d", v), string.format("%d", version), running(keys, now, grace) }
end

-- Arguments: how many. Returns of each proxy, those that were heard of last: its name, seconds since
-- then, which process it is, its requests in flight, and what it says of itself.
FLAGS.proxies = { "no-writes" }
F.proxies = function(keys, args, now)
  local found = redis.call("ZREVRANGE", keys.pool .. ":px", 0, tonumber(args[1]) - 1, "WITHSCORES")
  local rows = {}
  for n = 1, #found, 2 do
    local proxy = found[n]
    table.insert(rows, proxy)
    table.insert(rows, text(math.abs(now - tonumber(found[n + 1]))))
    for _, hash in ipairs({ "who", "f", "about" }) do
      local row = redis.call("HGET", keys.pool .. ":" .. hash, proxy)
      table.insert(rows, row and #row <= LONGEST and row or "")
    end
  end
  return rows
end

-- Arguments: the grace; "1": it ends in good order, and is not missed; which proxies. They do not
-- count as running any more.
F.reap = function(keys, args, now)
  local dead_at = now - tonumber(args[1])
  local _, v = head(keys)
  for n = 3, #args do
    local seen = redis.call("ZSCORE", keys.pool .. ":px", args[n])
    v = v + 1
    if args[2] == "1" then
      forget(keys, args[n])
    elseif seen then
      redis.call("ZADD", keys.pool .. ":px", math.min(tonumber(seen), dead_at), args[n])
      remove(keys, "f", args[n])
    end
  end
  redis.call("HSET", keys.pool .. ":m", "v", string.format("%d", v))
end

-- Note that rows are in use. Arguments: a hash, names.
F.touch = function(keys, args, now)
  local hash = keys.pool .. ":" .. args[1]
  for n = 2, #args do
    local version, _, data = parts(redis.call("HGET", hash, args[n]))
    if version > 0 then
      redis.call("HSET", hash, args[n], string.format("%d ", version) .. text(now) .. " " .. data)
    end
  end
end

-- Delete what is old. Arguments: a hash, a cursor, the age of rows in seconds, that of lines that
-- are gone (""). Returns the next cursor. What no proxy has written stays.
F.sweep = function(keys, args, now)
  local hash, before = args[1], now - tonumber(args[3])
  local gone_before = args[4] ~= "" and now - tonumber(args[4])
  local found = redis.call("HSCAN", keys.pool .. ":" .. hash, args[2], "COUNT", ROWS)
  for n = 1, #found[2], 2 do
    local version, at, data = parts(found[2][n + 1])
    if version > 0 then
      local gone_at = gone_before and tonumber(string.match(data, "^(%S+) "))
      if at < before or gone_at and gone_at < gone_before then
        remove(keys, hash, found[2][n])
      end
    end
  end
  return found[1]
end

-- Delete sums that were not added to for so long. Arguments: their age in seconds. Returns how
-- many were deleted: a thousand at most of each name.
F.sweep_sums = function(keys, args, now)
  local deleted = 0
  for _, name in ipairs(redis.call("SMEMBERS", keys.pool .. ":c")) do
    local sums = keys.pool .. ":c:" .. name
    local before = "(" .. text(now - tonumber(args[1]))
    for _, key in ipairs(redis.call("ZRANGEBYSCORE", sums, "-inf", before, "LIMIT", 0, ROWS)) do
      redis.call("DEL", sums .. ":" .. key)
      redis.call("ZREM", sums, key)
      deleted = deleted + 1
    end
  end
  return deleted
end

-- Move keys out of the way that are of another type than any proxy has made. Returns how many.
F.put_aside = function(keys)
  local moved = 0
  for name, wanted in pairs(TYPES) do
    local key = keys.pool .. ":" .. name
    if not is_of(key, wanted) then
      redis.call("RENAME", key, key .. ":damaged")
      moved = moved + 1
    end
  end
  return moved
end
