-- Semaphores. A semaphore is identified by its generation: a new one with a deleted one's name has
-- another. The global one is generation 0. Others come from the clock, in milliseconds, so that none
-- is used twice even if Redis loses the last one.
--
-- limits                  generation -> how many permits may be held
-- out                     generation -> permits that members hold
-- held:<member>           generation -> permits that the member holds
-- leased                  generation -> permits that leases hold
-- queue:<generation>      'member ticket permits' -> when it was requested, less RETURNS for a
--                         returning request
-- waits:<member>          'generation ticket permits' of the member's waiting requests
-- semaphores              name -> generation
-- member_limits:<name>    member -> its limit of a semaphore whose limit is a setting: the lowest holds
-- limits_of:<member>      the names of the semaphores of which the member has such a limit
-- last_generation
-- opens_at                nothing is granted before
-- run                     Redis's last known run. In another run it may have lost recent changes
-- lineage                 a name for this data set: another one if Redis has lost everything

-- Requests that gave a permit back are served before all others. Scores stay whole numbers.
local RETURNS = 4000000000000000

local touched = {}

local function limit_of(semaphore)
  return tonumber(redis.call('HGET', key('limits'), semaphore) or nil)
end

local function touch(semaphore)
  touched[tostring(semaphore)] = true
end

-- Adds permits to a member, or removes some: never below zero, whatever Redis may have lost.
local function hold(semaphore, name, permits)
  local held = redis.call('HINCRBY', key('held', name), semaphore, permits)
  if held <= 0 then
    redis.call('HDEL', key('held', name), semaphore)
    permits = permits - held
  end
  redis.call('HINCRBY', key('out'), semaphore, permits)
end

-- How many permits are held, and how many of them leases hold.
local function out_of(semaphore)
  local held = tonumber(redis.call('HGET', key('out'), semaphore) or 0)
  local leased = tonumber(redis.call('HGET', key('leased'), semaphore) or 0)
  return held + leased, leased
end

local function waiter(entry)
  local name, ticket, permits = string.match(entry, '(%S+) (%S+) (%S+)')
  return name, ticket, tonumber(permits)
end

local function waits(semaphore, ticket, permits)
  return table.concat({semaphore, ticket, whole(permits)}, ' ')
end

-- Takes a request out of the queue.
local function leave_queue(semaphore, entry)
  local name, ticket, permits = waiter(entry)
  redis.call('ZREM', key('queue', semaphore), entry)
  redis.call('SREM', key('waits', name), waits(semaphore, ticket, permits))
end

local function opens_at()
  local at = tonumber(redis.call('GET', key('opens_at')) or 0)
  if at <= now then
    return at
  end
  return math.min(at, now + LONGEST_LEASE)
end

local function may_open()
  return now >= opens_at()
end

-- The requests of this call, and where they wait.
local requests = {}

-- Grants free permits to waiting requests, in their order. Returns how many are held then, and how many
-- of them leases hold.
local function serve(semaphore, limit)
  local queue, out, leased = key('queue', semaphore), out_of(semaphore)
  while true do
    local first = redis.call('ZRANGE', queue, 0, 0)[1]
    if not first then
      return out, leased
    end
    local name, ticket, permits = waiter(first)
    if is_dead(name) then
      if removed >= MAX_REMOVED then
        return out, leased
      end
      removed = removed + 1
      leave_queue(semaphore, first)
    elseif out + permits > limit or not may_open() then
      return out, leased
    else
      leave_queue(semaphore, first)
      hold(semaphore, name, permits)
      out = out + permits
      answer(name, ticket, {
        verdict = 'granted', semaphore = tonumber(semaphore), permits = permits,
      })
    end
  end
end

function operations.request_permits(op)
  local limit = limit_of(op.semaphore)
  if not limit then
    answer(member, op.ticket, {verdict = 'closed'})
    return
  elseif op.permits > limit then
    answer(member, op.ticket, {verdict = 'more_than_limit', limit = limit})
    return
  end
  local entry = member .. ' ' .. whole(op.ticket) .. ' ' .. whole(op.permits)
  local line = op.returns and 'returning' or 'first'
  local requested_at = arrival(op.waited_us, line) - (op.returns and RETURNS or 0)
  redis.call('ZADD', key('queue', op.semaphore), whole(requested_at), entry)
  touch(op.semaphore)
  table.insert(requests, {op = op, queue = key('queue', op.semaphore), entry = entry})
end

function operations.cancel_request(op)
  leave_queue(whole(op.semaphore), member .. ' ' .. whole(op.ticket) .. ' ' .. whole(op.permits))
  touch(op.semaphore)
end

function operations.release_permits(op)
  hold(op.semaphore, member, -op.permits)
  touch(op.semaphore)
end

-- A new member holds what its process held as an earlier member.
function operations.claim_permits(op)
  hold(op.semaphore, member, op.permits)
  touch(op.semaphore)
end

-- Serves the semaphore again: the end of a member or lease may have made room.
function operations.refresh(op)
  touch(op.semaphore)
end

local function set_limit(semaphore, limit)
  local before = limit_of(semaphore)
  redis.call('HSET', key('limits'), semaphore, limit)
  touch(semaphore)
  if before and before <= limit then
    return
  end
  for _, entry in ipairs(redis.call('ZRANGE', key('queue', semaphore), 0, -1)) do
    local name, ticket, permits = waiter(entry)
    if permits > limit then
      leave_queue(whole(semaphore), entry)
      answer(name, ticket, {verdict = 'more_than_limit', limit = limit})
    end
  end
end

local function semaphore_of(name)
  return tonumber(redis.call('HGET', key('semaphores'), name) or nil)
end

-- The lowest limit that a live member has in its settings; nothing if none has one.
local function lowest_limit(name)
  local limits, lowest = redis.call('HGETALL', key('member_limits', name)), nil
  for i = 1, #limits, 2 do
    local limit = tonumber(limits[i + 1])
    if not is_dead(limits[i]) then
      lowest = math.min(lowest or limit, limit)
    end
  end
  return lowest
end

-- Sets the limit of a semaphore, and notifies all members.
local function change_limit(name, semaphore, limit)
  set_limit(semaphore, limit)
  announce({registered = {name = name, semaphore = semaphore, limit = limit}})
end

function operations.register(op)
  local semaphore, limit = semaphore_of(op.name), op.limit
  local new = not semaphore
  if new then
    local last = tonumber(redis.call('GET', key('last_generation')) or 0)
    semaphore = math.max(math.floor(now / 1000), last + 1)
    redis.call('SET', key('last_generation'), semaphore)
    redis.call('HSET', key('semaphores'), op.name, semaphore)
  end
  if op.of_setting then
    redis.call('HSET', key('member_limits', op.name), member, whole(limit))
    redis.call('SADD', key('limits_of', member), op.name)
    limit = lowest_limit(op.name)
  end
  change_limit(op.name, semaphore, limit)
  return {semaphore = semaphore, new = new, limit = limit}
end

-- Deletes a semaphore. Its leases stay until they end.
function operations.delete(op)
  local semaphore = semaphore_of(op.name)
  if not semaphore then
    return {deleted = false}
  end
  redis.call('HDEL', key('semaphores'), op.name)
  redis.call('UNLINK', key('member_limits', op.name))
  redis.call('HDEL', key('limits'), semaphore)
  redis.call('HDEL', key('out'), semaphore)
  for _, entry in ipairs(redis.call('ZRANGE', key('queue', semaphore), 0, -1)) do
    local name, ticket = waiter(entry)
    leave_queue(whole(semaphore), entry)
    answer(name, ticket, {verdict = 'closed'})
  end
  for _, list in ipairs({
    redis.call('ZRANGE', key('alive'), 0, -1), redis.call('SMEMBERS', key('dead')),
  }) do
    for _, name in ipairs(list) do
      redis.call('HDEL', key('held', name), semaphore)
    end
  end
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

-- Restores semaphores that Redis has lost, as a member knows them.
local function restore(known)
  for _, semaphore in ipairs(known) do
    if redis.call('HSETNX', key('semaphores'), semaphore.name, semaphore.semaphore) == 1 then
      redis.call('HSET', key('limits'), semaphore.semaphore, semaphore.limit)
    end
  end
end

-- Makes the caller a member. If Redis has restarted or lost its data, it may have lost permits that
-- replicas hold, even if only those of the last second. Then nothing is granted until everything that
-- may be held is over. `longest_us` is the longest replica lease that the member knows of.
function operations.join(op)
  redis.call('SET', key('members'), FORMAT)
  local known_longest = longest_lease(0)
  redis.call('HSET', key('lease_lengths'), member, whole(lease_length))
  local longest = math.max(longest_lease(lease_length), op.longest_us)
  local run, lineage = redis.call('GET', key('run')), redis.call('GET', key('lineage'))
  local is_lost = not lineage or op.lineage and op.lineage ~= lineage
  if not lineage then
    lineage = member
    redis.call('SET', key('lineage'), lineage)
  end
  if run ~= op.run or op.lineage and op.lineage ~= lineage then
    redis.call('SET', key('run'), op.run)
    redis.call('SET', key('opens_at'), whole(math.max(opens_at(), now + longest)))
  end
  if is_lost or not may_open() then
    restore(op.known)
  end
  local global = limit_of(0)
  if not global or op.starts and global ~= op.limit then
    set_limit(0, op.limit)
  end
  touch(0)
  if longest > known_longest then
    announce({replica_lease = {longest_us = longest}})
  end
  return {semaphores = registry(), lineage = lineage, longest_us = longest}
end

-- Ends a member: what it holds is free at once.
function operations.retire(op)
  local name = op.member or member
  retired = retired or name == member
  end_member(name)
  remove_dead_members()
end

-- Removes its permits.
table.insert(removers, function(name, most)
  local held = redis.call('HGETALL', key('held', name))
  local count = math.min(#held / 2, most)
  for i = 1, count do
    hold(held[2 * i - 1], name, -held[2 * i])
    touch(held[2 * i - 1])
  end
  return count
end)

-- Removes the limits of its settings.
table.insert(removers, function(name, most)
  local all = redis.call('SPOP', key('limits_of', name), most)
  for _, limited in ipairs(all) do
    redis.call('HDEL', key('member_limits', limited), name)
    local semaphore, lowest = semaphore_of(limited), lowest_limit(limited)
    if semaphore and lowest and lowest ~= limit_of(semaphore) then
      change_limit(limited, semaphore, lowest)
    end
  end
  return #all
end)

-- Removes its waiting requests.
table.insert(removers, function(name, most)
  local all = redis.call('SPOP', key('waits', name), most)
  for _, entry in ipairs(all) do
    local semaphore, ticket, permits = string.match(entry, '(%S+) (%S+) (%S+)')
    redis.call('ZREM', key('queue', semaphore), table.concat({name, ticket, permits}, ' '))
    touch(semaphore)
  end
  return #all
end)

-- Serves the semaphores that were touched. Returns their usage.
local function serve_semaphores()
  local usage = {}
  for semaphore in pairs(touched) do
    local limit = limit_of(semaphore)
    if limit then
      local in_use, leased = serve(semaphore, limit)
      usage[semaphore] = {limit = limit, in_use = in_use, leased = leased}
    else
      redis.call('HDEL', key('out'), semaphore)
      redis.call('HDEL', key('held', member), semaphore)
    end
  end
  for _, request in ipairs(requests) do
    local op = request.op
    if not op.wait then
      if redis.call('ZREM', request.queue, request.entry) == 1 then
        answer(member, op.ticket, {verdict = 'unavailable'})
      end
    elseif redis.call('ZSCORE', request.queue, request.entry) then
      local entry = waits(whole(op.semaphore), whole(op.ticket), op.permits)
      redis.call('SADD', key('waits', member), entry)
    end
  end
  for semaphore, state in pairs(usage) do
    state.waiting = redis.call('ZCARD', key('queue', semaphore))
  end
  return usage
end
