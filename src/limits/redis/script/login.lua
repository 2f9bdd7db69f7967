-- Logins: names that all members accept while they are used and the member that opened them lives.
--
-- login:<id>  'member end', for as long as it may be unused: who opened it, and when it ends in any case

local function milliseconds(us)
  return whole(math.max(math.floor(us / 1000), 1))
end

function operations.open_login(op)
  local value = member .. ' ' .. whole(now + op.longest_us)
  redis.call('SET', key('login', op.id), value, 'PX', milliseconds(op.idle_us))
end

-- Returns whether a login is open. If so, it may be unused for `idle_us` from now on.
function operations.use_login(op)
  local opened, ends = string.match(redis.call('GET', key('login', op.id)) or '', '(%S+) (%S+)')
  local left = opened and tonumber(ends) - now
  if not opened or left <= 0 or not is_alive(opened) then
    return {open = false}
  end
  if op.idle_us then
    redis.call('PEXPIRE', key('login', op.id), milliseconds(math.min(op.idle_us, left)))
  end
  return {open = true}
end

function operations.close_login(op)
  redis.call('DEL', key('login', op.id))
end
