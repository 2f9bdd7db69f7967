-- Permits. A semaphore is known by its generation: a new one of an old name is another one. The
-- global one is generation 0. Others are made of the clock, in milliseconds, so that they do not
-- come twice where Redis has forgotten the last.
--
-- limits                  generation -> how many permits may be out
-- held:<generation>       member -> permits that it holds
-- leased                  generation -> permits that leases hold
-- queue:<generation>      'member ticket permits' -> when it asked
-- semaphores              name -> generation
-- last_generation
-- opens_at                nothing is granted before
-- run                     which run of Redis this was last; with it goes what it may have forgotten

local touched = {}

local function limit_of(semaphore)
  return tonumber(redis.call('HGET', key('limits'), semaphore) or nil)
end

local function touch(semaphore)
  touched[tostring(semaphore)] = true
end

local function hold(semaphore, name, permits)
  if redis.call('HINCRBY', key('held', semaphore), name, permits) <= 0 then
    redis.call('HDEL', key('held', semaphore), name)
  end
end

local function out_of(semaphore)
  local out = tonumber(redis.call('HGET', key('leased'), semaphore) or 0)
  for _, permits in ipairs(redis.call('HVALS', key('held', semaphore))) do
    out = out + permits
  end
  return out
end

local function waiter(entry)
  local name, ticket, permits = string.match(entry, '(%S+) (%S+) (%S+)')
  return name, ticket, tonumber(permits)
end

local function opens_at()
  return tonumber(redis.call('GET', key('opens_at')) or 0)
end

local function may_open()
  return now >= opens_at()
end

-- Gives those who wait what is free, in their order. Says what is out then.
local function serve(semaphore, limit)
  local queue, out = key('queue', semaphore), out_of(semaphore)
  while true do
    local first = redis.call('ZRANGE', queue, 0, 0)[1]
    if not first then
      return out
    end
    local name, ticket, permits = waiter(first)
    if out + permits > limit or not may_open() then
      return out
    else
      redis.call('ZREM', queue, first)
      hold(semaphore, name, permits)
      out = out + permits
      answer(name, ticket, {verdict = 'granted', semaphore = tonumber(semaphore), permits = permits})
    end
  end
end

-- Those who ask without waiting, by semaphore.
local impatient = {}

function operations.ask(op)
  local limit = limit_of(op.semaphore)
  if not limit then
    answer(member, op.ticket, {verdict = 'closed'})
    return
  elseif op.permits > limit then
    answer(member, op.ticket, {verdict = 'more_than_limit', limit = limit})
    return
  end
  local entry = member .. ' ' .. whole(op.ticket) .. ' ' .. whole(op.permits)
  redis.call('ZADD', key('queue', op.semaphore), whole(arrival(op.waited_us)), entry)
  touch(op.semaphore)
  if not op.wait then
    table.insert(impatient, {queue = key('queue', op.semaphore), entry = entry, ticket = op.ticket})
  end
end

function operations.leave(op)
  local entry = member .. ' ' .. whole(op.ticket) .. ' ' .. whole(op.permits)
  redis.call('ZREM', key('queue', op.semaphore), entry)
  touch(op.semaphore)
end

function operations.give_back(op)
  hold(op.semaphore, member, -op.permits)
  touch(op.semaphore)
end

-- A new member holds what it held as the member that it was before.
function operations.claim(op)
  hold(op.semaphore, member, op.permits)
  touch(op.semaphore)
end

-- Looks again whether somebody's end has made room.
function operations.look(op)
  touch(op.semaphore)
end

local function set_limit(semaphore, limit)
  redis.call('HSET', key('limits'), semaphore, limit)
  local queue = key('queue', semaphore)
  for _, entry in ipairs(redis.call('ZRANGE', queue, 0, -1)) do
    local name, ticket, permits = waiter(entry)
    if permits > limit then
      redis.call('ZREM', queue, entry)
      answer(name, ticket, {verdict = 'more_than_limit', limit = limit})
    end
  end
  touch(semaphore)
end

local function semaphore_of(name)
  return tonumber(redis.call('HGET', key('semaphores'), name) or nil)
end

function operations.register(op)
  local semaphore = semaphore_of(op.name)
  local new = not semaphore
  if new then
    local last = tonumber(redis.call('GET', key('last_generation')) or 0)
    semaphore = math.max(math.floor(now / 1000), last + 1)
    redis.call('SET', key('last_generation'), semaphore)
    redis.call('HSET', key('semaphores'), op.name, semaphore)
  end
  set_limit(semaphore, op.limit)
  announce({registered = {name = op.name, semaphore = semaphore, limit = op.limit}})
  return {semaphore = semaphore, new = new}
end

function operations.delete(op)
  local semaphore = semaphore_of(op.name)
  if not semaphore then
    return {deleted = false}
  end
  redis.call('HDEL', key('semaphores'), op.name)
  redis.call('HDEL', key('limits'), semaphore)
  for _, entry in ipairs(redis.call('ZRANGE', key('queue', semaphore), 0, -1)) do
    local name, ticket = waiter(entry)
    answer(name, ticket, {verdict = 'closed'})
  end
  redis.call('DEL', key('queue', semaphore), key('held', semaphore))
  announce({deleted = {name = op.name, semaphore = semaphore}})
  return {deleted = true}
end

local function registry()
  local names, list = redis.call('HGETALL', key('semaphores')), {}
  for i = 1, #names, 2 do
    local semaphore = tonumber(names[i + 1])
    table.insert(list, {name = names[i], semaphore = semaphore, limit = limit_of(semaphore)})
  end
  return list
end

function operations.find(op)
  local semaphore = semaphore_of(op.name)
  if semaphore then
    return {semaphore = semaphore, limit = limit_of(semaphore)}
  end
end

-- Puts back what Redis has forgotten, as a member remembers it.
local function restore(known)
  for _, semaphore in ipairs(known) do
    if redis.call('HSETNX', key('semaphores'), semaphore.name, semaphore.semaphore) == 1 then
      redis.call('HSET', key('limits'), semaphore.semaphore, semaphore.limit)
    end
  end
end

-- Becomes a member. Where Redis is not the run it was, it may have forgotten who holds what, were
-- it only the last second's: nothing is granted then until all that was held before is over.
function operations.join(op)
  local run = redis.call('GET', key('run'))
  if run ~= op.run then
    redis.call('SET', key('run'), op.run)
    local closed = run and tenure or tenure - op.uptime_us
    if closed > 0 then
      redis.call('SET', key('opens_at'), whole(now + closed))
    end
  end
  if not run or not may_open() then
    restore(op.known)
  end
  local global = limit_of(0)
  if not global or op.starts and global ~= op.limit then
    set_limit(0, op.limit)
  end
  touch(0)
  return {semaphores = registry()}
end

-- Ceases to be a member: what it holds is free at once.
function operations.retire(op)
  bury(op.member or member)
end

table.insert(burials, function(name)
  for _, semaphore in ipairs(redis.call('HKEYS', key('limits'))) do
    redis.call('HDEL', key('held', semaphore), name)
    for _, entry in ipairs(redis.call('ZRANGE', key('queue', semaphore), 0, -1)) do
      if waiter(entry) == name then
        redis.call('ZREM', key('queue', semaphore), entry)
      end
    end
    touch(semaphore)
  end
end)

-- Serves all that was touched. Says how each stands then.
local function serve_semaphores()
  local standing = {}
  for semaphore in pairs(touched) do
    local limit = limit_of(semaphore)
    if limit then
      local out = serve(semaphore, limit)
      standing[semaphore] = {limit = limit, out = out}
    end
  end
  for _, asked in ipairs(impatient) do
    if redis.call('ZREM', asked.queue, asked.entry) == 1 then
      answer(member, asked.ticket, {verdict = 'unavailable'})
    end
  end
  for semaphore, stands in pairs(standing) do
    stands.waiting = redis.call('ZCARD', key('queue', semaphore))
  end
  return standing
end
