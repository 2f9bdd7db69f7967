-- Who takes part, what time it is, and how answers find those who wait.
--
-- A replica is a member from its first word to `tenure` after its last. All that it holds and all
-- that it waits for is kept under its name as a member, and goes when it is none any more. A new
-- connection is a new member.
--
-- KEYS[1]  what all keys begin with; its hash tag puts them all in one slot of a cluster
-- ARGV[1]  the member that speaks
-- ARGV[2]  its tenure, in microseconds
-- ARGV[3]  what it has to say: a list of operations, in JSON
-- ARGV[4]  how long ago its process spoke last, in microseconds by its own clock; empty if never
--
-- members   the format of all keys. Earlier versions kept a sorted set under this name, so that
--           they fail on it and do not mix with this one
-- clock     what Redis's clock said last, and by how much `now` is ahead of it
-- alive     member -> when it ends unless it speaks
-- tenures   member -> its tenure
-- arrivals  'member line' -> when the last of those asked that wait for it in that line
-- dead      members that have ended and of which something is left
--
-- Times are in microseconds. One of the clock has 16 digits, of which cjson and tostring keep 14:
-- it goes into Redis as an argument, and out only as a distance from now or through whole().

local FORMAT = '4'

-- What one call of the script buries at most of the dead: Redis does nothing else meanwhile.
local MOST_BURIED = 25

-- Longer than any member that lives is silent.
local LONGEST_SILENCE = 3 * 1000000

-- The greatest tenure that can be set.
local LONGEST_TENURE = 3600 * 1000000

local member, tenure, quiet = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[4])

local function key(...)
  return KEYS[1] .. ':' .. table.concat({...}, ':')
end

local function whole(number)
  return string.format('%.0f', number)
end

-- The time. It does not run back and does not leap, though Redis's clock can be set: a leap is told
-- by the speaker's own clock, since less time has passed for all than for the speaker.
local wall, ahead, passed, stepped
do
  local time = redis.call('TIME')
  wall = time[1] * 1000000 + time[2]
  local last, before = string.match(redis.call('GET', key('clock')) or '', '(%S+) (%S+)')
  passed = wall - (tonumber(last) or wall)
  if passed < 0 then
    stepped = passed
  elseif quiet and passed > quiet + tenure / 5 then
    stepped = passed - quiet
  end
  ahead = (tonumber(before) or 0) - (stepped or 0)
end
local now = wall + ahead

local function keep_clock()
  redis.call('SET', key('clock'), whole(wall) .. ' ' .. whole(ahead))
end

-- The format that others keep here which this script cannot read.
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

-- The greatest tenure of all that may hold something, or the one given.
local function longest_tenure(longest)
  for _, other in ipairs(redis.call('HVALS', key('tenures'))) do
    longest = math.max(longest, tonumber(other))
  end
  return longest
end

local function is_alive(name)
  return redis.call('ZSCORE', key('alive'), name)
end

-- Whether the speaker has ended in this call.
local retired = false

-- Whether a member has ended that is not buried yet: nothing is given to it any more.
local function is_dead(name)
  return (retired or name ~= member) and not is_alive(name)
end

local function live(name)
  redis.call('ZADD', key('alive'), whole(now + tenure), name)
end

local function end_member(name)
  redis.call('ZREM', key('alive'), name)
  redis.call('HDEL', key('tenures'), name)
  redis.call('HDEL', key('arrivals'), name .. ' first', name .. ' returning')
  redis.call('SADD', key('dead'), name)
end

local function end_the_silent()
  for _, name in ipairs(
    redis.call('ZRANGEBYSCORE', key('alive'), '-inf', whole(now), 'LIMIT', 0, MOST_BURIED)
  ) do
    end_member(name)
  end
end

-- A process that has just started cannot tell a leap of the clock from a long silence: those that
-- live get the time to speak.
local function spare_the_silent()
  if quiet or passed <= LONGEST_SILENCE then
    return
  end
  for _, name in ipairs(redis.call('ZRANGE', key('alive'), 0, -1)) do
    local ends = tonumber(redis.call('ZSCORE', key('alive'), name))
    redis.call('ZADD', key('alive'), whole(math.max(ends, now + LONGEST_SILENCE)), name)
  end
end

-- What goes with a member. Each takes its name and how much it may bury, and gives how much it has:
-- as much as it may where something is left.
local burials = {}

-- How much this call has buried.
local buried = 0

local function bury_the_dead()
  while buried < MOST_BURIED do
    local name = redis.call('SRANDMEMBER', key('dead'))
    if not name then
      return
    end
    for _, burial in ipairs(burials) do
      buried = buried + burial(name, MOST_BURIED - buried)
      if buried >= MOST_BURIED then
        return
      end
    end
    redis.call('SREM', key('dead'), name)
  end
end

-- A member of which nothing is left needs no burial: there may be nobody who speaks after it.
local function forget_if_buried(name)
  if redis.call('EXISTS', key('held', name), key('waits', name), key('budgets_of', name)) == 0 then
    redis.call('SREM', key('dead'), name)
  end
end

-- When the next one who is not this member ends unless it speaks, or never. Now, while somebody is
-- not buried yet.
local function next_end_of_a_member()
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

-- When those who asked did so, as a score: as long ago as they say, but in the order in which
-- each member asked in a line, whatever the network did.
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

-- What the tickets of each member have come to.
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

-- Tells every member, this one too.
local function announce(what)
  redis.call('PUBLISH', key('all'), cjson.encode(what))
end

-- What members can ask for: each takes its operation and gives a result or nothing.
local operations = {}
