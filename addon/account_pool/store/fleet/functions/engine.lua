-- What the connection itself needs.

-- The time, and nothing else.
FLAGS.ping = { "no-writes" }
F.ping = function()
  return false
end

-- Begin to use a pool. Arguments: the format that its data gets where it is new ("": none).
-- Returns the format that it has, nothing for none.
F.open = function(keys, args)
  local format = keys.pool .. ":format"
  if args[1] ~= "" then
    redis.call("SET", format, args[1], "NX")
  end
  return redis.call("GET", format)
end
