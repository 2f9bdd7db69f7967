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
--
-- Times are in microseconds. One of the clock has 16 digits, of which cjson and tostring keep 14:
-- it goes into Redis as an argument, and out only as a distance from now or through whole().

local member, tenure = ARGV[1], tonumber(ARGV[2])

local function key(...)
  return KEYS[1] .. ':' .. table.concat({...}, ':')
end

local function whole(number)
  return string.format('%.0f', number)
end

local now
do
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end

-- What goes with a member: each takes its name.
local burials = {}

local function bury(name)
  redis.call('ZREM', key('members'), name)
  for _, burial in ipairs(burials) do
    burial(name)
  end
end

local function bury_the_silent()
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', key('members'), '-inf', whole(now))) do
    bury(name)
  end
end

-- When the next one who is not this member ends unless it speaks, or never.
local function next_end_of_a_member()
  for _, name in ipairs(redis.call('ZRANGE', key('members'), 0, 1)) do
    if name ~= member then
      return tonumber(redis.call('ZSCORE', key('members'), name))
    end
  end
  return math.huge
end

-- When those who asked did so, as a score: as long ago as they say, but in the order in which
-- each member asked, whatever the network did.
local last_arrival

local function arrival(waited)
  local asked = now - waited
  if not last_arrival then
    last_arrival = tonumber(redis.call('GET', key('arrival', member)) or 0)
  end
  if asked <= last_arrival then
    asked = last_arrival + 1
  end
  last_arrival = asked
  return asked
end

local function keep_last_arrival()
  if last_arrival then
    redis.call('SET', key('arrival', member), whole(last_arrival), 'PX', math.ceil(tenure / 1000))
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
