-- Budgets: the quotas of an account, counted as `model::ledger` counts them in one process, and the
-- requests of all replicas that wait for them.
--
-- budget_left:<account>        'replica ticket' -> when the call was sent, for a window
-- budget_queue:<account>       'member ticket' -> when it was requested
-- budget_returning:<account>   the same for returning requests, which go before the queue
-- budget_waiters:<account>     'member ticket' -> its cost, deadline and line, packed
-- places:<member>:<account>    the member's tickets that wait there
-- budget_openings              account -> when its waiting requests are to be served again
--
-- Each operation names its account. `midnight_us` is the time until midnight in California, which
-- only replicas know.

-- How long an unused account is kept, in milliseconds; and one of which Gemini has never accepted a
-- call, since callers can make up keys and models.
local KEPT = 2 * 24 * 3600 * 1000
local KEPT_UNPROVEN = 10 * 60 * 1000
local HOUR = 3600 * 1000000
-- No day, pause or used-up day is longer.
local LONGEST_DAY = 26 * HOUR
-- How many requests of former members one call withdraws. The rest is removed with the member.
local MAX_FORGOTTEN = 250
-- How many accounts one call serves because their waiting requests may fit now.
local MAX_OPENED = 25
-- The longest time in a reply, in microseconds: cjson writes no more digits.
local FAR = 10000000000000
-- How many accounts can be charged to one, and how long a chain of them can be.
local MAX_ALIASES = 32
-- How many requests that were made later but arrived earlier are taken into account.
local MAX_OVERTAKEN = 100

-- The budgets that this call of the script uses.
local budgets = {}

-- How many requests of former members this call has withdrawn.
local forgotten = 0

local function size_of(map)
  local size = 0
  for _ in pairs(map) do
    size = size + 1
  end
  return size
end

local function time_until(at)
  return math.min(math.ceil(at - now), FAR)
end

-- Why waiting does not help, or only waiting for the next day.
local function impossible(budget, ahead, cost)
  for _, kind in ipairs(KINDS) do
    if budget.quotas[kind.name] == 0 and cost[kind.unit] > 0 then
      return {verdict = 'no_quota', kind = kind.name}
    end
  end
  local day, reopens_at, used_up = budget.day, budget.day.closed_until, nil
  for _, kind in ipairs(KINDS) do
    local unit, limit = kind.unit, budget.quotas[kind.name]
    if limit and cost[unit] > limit then
      return {verdict = 'too_large', kind = kind.name, cost = cost[unit], limit = limit}
    end
    if limit and cost[unit] > 0 and kind.window == 'day' then
      local today = day.sent[unit] + total(budget, 'unsent')[unit] + ahead[unit] + cost[unit]
      if today > limit then
        reopens_at = math.max(reopens_at, day.ends)
        used_up = used_up or kind.name
      end
    end
  end
  if reopens_at > now then
    return {verdict = 'day_exhausted', kind = used_up, retry_after_us = time_until(reopens_at)}
  end
end

-- When a call can be reserved with `ahead` before it, or why it never can or not today; and which quota
-- has no room before, if it is known.
local function budget_opens_at(budget, ahead, cost)
  local reason = impossible(budget, ahead, cost)
  if reason then
    return nil, reason
  end
  local start, quota = now, nil
  if budget.paused_until > start then
    start, quota = budget.paused_until, budget.paused_for
  end
  if opens_at() > start then
    start, quota = opens_at(), nil
  end
  local at, last = rolling_opens_at(budget, ahead, cost, start, quota)
  return at, nil, last
end

local function not_before(at, quota)
  return {verdict = 'not_before', kind = quota, retry_after_us = time_until(at)}
end

local function opens_before(budget, deadline, ahead, cost)
  local at, reason, quota = budget_opens_at(budget, ahead, cost)
  if at and at > deadline then
    return nil, not_before(at, quota)
  end
  return at, reason
end

local function grant(budget, name, ticket, cost)
  add(share_of(budget, name).unsent, cost, 1)
  budget.here.unsaved = true
  answer(name, ticket, {
    verdict = 'reserved', account = budget.here.account, cost = cost,
  })
end

-- A request that yields once waits in the queue too.
local function queue_of(line)
  return line == 'returning' and 'returning' or 'queue'
end

local function queue_key(budget, line)
  return key('budget_' .. queue_of(line), budget.here.account)
end

local function request_of(budget, entry)
  local waiter = redis.call('HGET', key('budget_waiters', budget.here.account), entry)
  if not waiter then
    return nil
  end
  local request = cmsgpack.unpack(waiter)
  request.entry = entry
  return request
end

local function put(budget, request, score)
  local waiter = cmsgpack.pack({cost = request.cost, deadline = request.deadline, line = request.line})
  redis.call('ZADD', queue_key(budget, request.line), whole(score), request.entry)
  redis.call('HSET', key('budget_waiters', budget.here.account), request.entry, waiter)
  local name, ticket = string.match(request.entry, '(%S+) (%S+)')
  redis.call('SADD', key('places', name, budget.here.account), ticket)
end

local function remove_request(budget, request)
  redis.call('ZREM', queue_key(budget, request.line), request.entry)
  redis.call('HDEL', key('budget_waiters', budget.here.account), request.entry)
  local name, ticket = string.match(request.entry, '(%S+) (%S+)')
  redis.call('SREM', key('places', name, budget.here.account), ticket)
  local share = share_of(budget, name)
  take_from(share[queue_of(request.line)], request.cost)
  budget.here.unsaved = true
end

-- Withdraws at most `most` requests of a member. Returns how many.
local function forget_requests(budget, name, most)
  local tickets = redis.call('SPOP', key('places', name, budget.here.account), most)
  for _, ticket in ipairs(tickets) do
    local request = request_of(budget, name .. ' ' .. ticket)
    if request then
      remove_request(budget, request)
    end
  end
  return #tickets
end

-- Redis has evicted the waiting requests. They end at their deadlines.
local function forget_line(budget, line)
  redis.call('DEL', queue_key(budget, line))
  for _, share in pairs(budget.members) do
    share[line] = amount()
  end
  budget.here.unsaved = true
end

-- Grants waiting requests of a line while there is room. Returns when to serve it again.
local function serve_line(budget, line, ahead)
  while total(budget, line).requests > 0 do
    local first = redis.call('ZRANGE', queue_key(budget, line), 0, 0)[1]
    local request = first and request_of(budget, first)
    if not request then
      forget_line(budget, line)
      return math.huge
    end
    local name, ticket = string.match(first, '(%S+) (%S+)')
    local at, reason = opens_before(budget, request.deadline, ahead, request.cost)
    if is_dead(name) then
      if removed >= MAX_REMOVED then
        return now
      end
      removed = removed + 1
      remove_request(budget, request)
    elseif reason then
      remove_request(budget, request)
      answer(name, ticket, reason)
    elseif at > now then
      if is_held_up(budget, request.cost) then
        -- Until a reservation is sent or given back, or its member ends.
        return math.huge
      end
      return math.ceil(at)
    elseif request.line == 'yields_once' and now < request.deadline
      and waiting(budget).requests > request.cost.requests
    then
      local last = redis.call('ZRANGE', queue_key(budget, line), -1, -1, 'WITHSCORES')[2]
      request.line = 'queue'
      put(budget, request, math.max(now, last + 1))
    else
      remove_request(budget, request)
      grant(budget, name, ticket, request.cost)
    end
  end
  return math.huge
end
