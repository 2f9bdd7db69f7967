-- Membership, the clock, and the delivery of answers.
--
-- A replica is a member until its replica lease ends: `lease_length` after its last call. Everything
-- that it holds and requests is stored under its member name and removed when it ends. A new
-- connection is a new member.
--
-- KEYS[1]  the prefix of all keys; its hash tag puts them all in one slot of a cluster
-- ARGV[1]  the member that calls
-- ARGV[2]  the length of its replica lease, in microseconds
-- ARGV[3]  its commands: a list, in JSON
-- ARGV[4]  how long ago its process called last, in microseconds by its own clock; empty if never
--
-- members        the format of all keys. The first version kept a sorted set under this name, so it
--                fails on this key and does not mix with later versions
-- clock          the last time by Redis's clock, and by how much `now` is ahead of it
-- alive          member -> when its replica lease ends
-- lease_lengths  member -> the length of its replica lease
-- arrivals       'member line' -> when its last request in that line was made
-- dead           members that have ended and of which something is left
--
-- Times are in microseconds. A clock time has 16 digits, of which cjson and tostring keep 14. So it
-- goes into Redis as an argument, and out only as a distance from now or through whole().

local FORMAT = '5'

-- How many items of dead members one call removes at most: Redis does nothing else meanwhile.
local MAX_REMOVED = 25

-- Longer than the time between two calls of any live member.
local LONGEST_SILENCE = 3 * 1000000

-- The longest replica lease that can be configured.
local LONGEST_LEASE = 3600 * 1000000

local member, lease_length, since_last = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[4])

local function key(...)
  return KEYS[1] .. ':' .. table.concat({...}, ':')
end

local function whole(number)
  return string.format('%.0f', number)
end

-- The time. It never goes back and never leaps, although Redis's clock can be set. The caller's own
-- clock reveals a leap: by it, less time has passed since the last call.
local wall, ahead, passed, stepped
do
  local time = redis.call('TIME')
  wall = time[1] * 1000000 + time[2]
  local last, before = string.match(redis.call('GET', key('clock')) or '', '(%S+) (%S+)')
  passed = wall - (tonumber(last) or wall)
  if passed < 0 then
    stepped = passed
  elseif since_last and passed > since_last + lease_length / 5 then
    stepped = passed - since_last
  end
  ahead = (tonumber(before) or 0) - (stepped or 0)
end
local now = wall + ahead

local function keep_clock()
  redis.call('SET', key('clock'), whole(wall) .. ' ' .. whole(ahead))
end

-- The format in which others keep the limits here, if this script cannot read it.
local function other_format()
  local format = redis.pcall('GET', key('members'))
  if type(format) ~= 'table' then
    return format and format ~= FORMAT and format or nil
  end
  -- The sorted set of the first version.
  if redis.call('ZCOUNT', key('members'), whole(now), '+inf') > 0 then
    return '1'
  end
  for _, name in ipairs(redis.call('ZRANGE', key('members'), 0, -1)) do
    redis.call('UNLINK', key('budgets_of', name))
  end
  for _, semaphore in ipairs(redis.call('HKEYS', key('limits'))) do
    redis.call('UNLINK', key('held', semaphore), key('queue', semaphore))
  end
  redis.call('UNLINK', key('members'))
end

-- The longest replica lease of all members that may hold something, at least the given one.
local function longest_lease(longest)
  for _, other in ipairs(redis.call('HVALS', key('lease_lengths'))) do
    longest = math.max(longest, tonumber(other))
  end
  return longest
end

local function is_alive(name)
  return redis.call('ZSCORE', key('alive'), name)
end

-- Whether the calling member has ended in this call.
local retired = false

-- Whether a member has ended and is not removed yet. Nothing is granted to it any more.
local function is_dead(name)
  return (retired or name ~= member) and not is_alive(name)
end

local function keep_alive(name)
  redis.call('ZADD', key('alive'), whole(now + lease_length), name)
end

local function end_member(name)
  redis.call('ZREM', key('alive'), name)
  redis.call('HDEL', key('lease_lengths'), name)
  redis.call('HDEL', key('reports'), name)
  redis.call('HDEL', key('arrivals'), name .. ' first', name .. ' returning')
  redis.call('SADD', key('dead'), name)
end

local function end_silent_members()
  for _, name in ipairs(
    redis.call('ZRANGEBYSCORE', key('alive'), '-inf', whole(now), 'LIMIT', 0, MAX_REMOVED)
  ) do
    end_member(name)
  end
end

-- A process that has just started cannot tell a leap of the clock from a long silence. So live
-- members get time for another call.
local function extend_silent_members()
  if since_last or passed <= LONGEST_SILENCE then
    return
  end
  for _, name in ipairs(redis.call('ZRANGE', key('alive'), 0, -1)) do
    local ends = tonumber(redis.call('ZSCORE', key('alive'), name))
    redis.call('ZADD', key('alive'), whole(math.max(ends, now + LONGEST_SILENCE)), name)
  end
end

-- Functions that remove what belongs to a dead member. Each takes its name and how many items it may
-- remove, and returns how many it has removed: all it may if something is left.
local removers = {}

-- How many items this call has removed.
local removed = 0

local function remove_dead_members()
  while removed < MAX_REMOVED do
    local name = redis.call('SRANDMEMBER', key('dead'))
    if not name then
      return
    end
    for _, remover in ipairs(removers) do
      removed = removed + remover(name, MAX_REMOVED - removed)
      if removed >= MAX_REMOVED then
        return
      end
    end
    redis.call('SREM', key('dead'), name)
  end
end

-- Forgets a member of which nothing is left: there may be no later call that removes it.
local function forget_if_empty(name)
  local left = {key('held', name), key('waits', name), key('limits_of', name), key('budgets_of', name)}
  if redis.call('EXISTS', unpack(left)) == 0 then
    redis.call('SREM', key('dead'), name)
  end
end

-- When the next other member ends, or never. Now, while a dead member is not removed yet.
local function next_member_end()
  if redis.call('EXISTS', key('dead')) == 1 then
    return now
  end
  for _, name in ipairs(redis.call('ZRANGE', key('alive'), 0, 1)) do
    if name ~= member then
      return tonumber(redis.call('ZSCORE', key('alive'), name))
    end
  end
  return math.huge
end

-- When a request was made, as a score: as long ago as the member says, but in the order in which the
-- member made its requests in a line, whatever the network did.
local last_arrivals = {}

local function arrival(waited, line)
  local asked, last = now - waited, last_arrivals[line]
  if not last then
    last = tonumber(redis.call('HGET', key('arrivals'), member .. ' ' .. line) or 0)
  end
  if asked <= last then
    asked = last + 1
  end
  last_arrivals[line] = asked
  return asked
end

local function keep_last_arrivals()
  for line, last in pairs(last_arrivals) do
    redis.call('HSET', key('arrivals'), member .. ' ' .. line, whole(last))
  end
end

-- The outcomes of requests, by member.
local answers = {}

local function answer(to, ticket, what)
  what.ticket = tonumber(ticket)
  answers[to] = answers[to] or {}
  table.insert(answers[to], what)
end

local function publish_answers()
  for to, list in pairs(answers) do
    if to ~= member then
      redis.call('PUBLISH', key('to', to), cjson.encode({answers = list}))
    end
  end
end

-- Publishes to every member, this one included.
local function announce(what)
  redis.call('PUBLISH', key('all'), cjson.encode(what))
end

-- The commands. Each takes its operation and returns a result or nothing.
local operations = {}
