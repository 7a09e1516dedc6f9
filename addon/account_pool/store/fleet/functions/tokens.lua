-- The rows of logins.

-- Read keys, and write them where none has changed since it was read.
--   args: until when it may be done, by this engine's clock ("": always); for each key what was
--   read ("": nothing); for each key what to write ("": leave it). None: only read.
--   Returns the time, this run of the engine ("" where it is not told), whether it was done, and
--   what each key holds now.
-- The newest tokens of a login are small, and must not be lost because memory is full.
FLAGS.swap = { "allow-oom" }
F.swap = function(keys, args, now)
  local info = redis.pcall("INFO", "server")
  local run = type(info) == "string" and string.match(info, "run_id:(%x+)") or ""
  local found, done = {}, #args > 0
  for i, key in ipairs(keys) do
    found[i] = redis.call("GET", key) or ""
    done = done and found[i] == args[1 + i]
  end
  if done and args[1] ~= "" and now > tonumber(args[1]) then
    done = false
  end
  for i, key in ipairs(keys) do
    local new = args[1 + #keys + i]
    if done and new ~= "" then
      redis.call("SET", key, new)
      found[i] = new
    end
  end
  return { text(now), run, done and 1 or 0, unpack(found) }
end
