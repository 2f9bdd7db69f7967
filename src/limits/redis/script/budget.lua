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
      return {verdict = 'no_quota'}
    end
  end
  local day, reopens_at = budget.day, budget.day.closed_until
  for _, kind in ipairs(KINDS) do
    local unit, limit = kind.unit, budget.quotas[kind.name]
    if limit and cost[unit] > limit then
      return {verdict = 'too_large', kind = kind.name, cost = cost[unit], limit = limit}
    end
    if limit and cost[unit] > 0 and kind.window == 'day' then
      local today = day.sent[unit] + total(budget, 'unsent')[unit] + ahead[unit] + cost[unit]
      if today > limit then
        reopens_at = math.max(reopens_at, day.ends)
      end
    end
  end
  if reopens_at > now then
    return {verdict = 'day_exhausted', retry_after_us = time_until(reopens_at)}
  end
end

-- When a call can be reserved with `ahead` before it, or why it never can or not today.
local function budget_opens_at(budget, ahead, cost)
  local reason = impossible(budget, ahead, cost)
  if reason then
    return nil, reason
  end
  local start = math.max(now, budget.paused_until, opens_at())
  return rolling_opens_at(budget, ahead, cost, start)
end

local function not_before(at)
  return {verdict = 'not_before', retry_after_us = time_until(at)}
end

local function opens_before(budget, deadline, ahead, cost)
  local at, reason = budget_opens_at(budget, ahead, cost)
  if at and at > deadline then
    return nil, not_before(at)
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

-- Begins a new day if a replica reports another end of the day: replicas' clocks differ a little.
-- Returns whether it did.
local function begin_day(day, ends)
  local begins = ends > day.ends + HOUR
  if begins then
    day.began, day.ends, day.sent = math.max(day.began, day.ends), ends, amount()
  end
  return begins
end

local apply_quotas

-- Bounds all times: none is further ahead of now than it can have been set.
local function bound(budget)
  local window, day = budget.minute.window, budget.day
  for name, drained_at in pairs(budget.drained_at) do
    budget.drained_at[name] = math.min(drained_at, now + 2 * window)
  end
  budget.paused_until = math.min(budget.paused_until, now + LONGEST_DAY)
  day.ends = math.min(day.ends, now + LONGEST_DAY)
  day.closed_until = math.min(day.closed_until, now + LONGEST_DAY)
end

local function is_same(a, b)
  for _, kind in ipairs(KINDS) do
    if a[kind.name] ~= b[kind.name] then
      return false
    end
  end
  return true
end

local function lower_to(limits, others)
  for name, limit in pairs(others) do
    limits[name] = math.min(limits[name] or limit, limit)
  end
end

-- The settings of a member: the quotas of this account, those of them set by hand, and the limits set by
-- hand for the accounts that are charged here.
local function settings_of(budget, name)
  local settings = budget.settings[name]
  if not settings then
    settings = {planned = {}, by_hand = {}, aliases = {}}
    budget.settings[name] = settings
  end
  return settings
end

-- Combines the settings of all live members: the lowest limit of each kind holds. The settings of a
-- member end with it, unless no live member has any.
local function combine_settings(budget)
  local live, live_count = {}, 0
  for name, settings in pairs(budget.settings) do
    if not is_dead(name) then
      live[name], live_count = settings, live_count + 1
    end
  end
  if live_count == 0 then
    return
  end
  local planned, by_hand, aliases, first = {}, {}, {}, nil
  budget.settings, budget.differ = live, false
  for _, settings in pairs(live) do
    first = first or settings
    local differs = not is_same(settings.planned, first.planned)
      or not is_same(settings.by_hand, first.by_hand)
    lower_to(planned, settings.planned)
    lower_to(by_hand, settings.by_hand)
    for alias, limits in pairs(settings.aliases) do
      differs = differs or aliases[alias] and not is_same(aliases[alias], limits)
      aliases[alias] = aliases[alias] or {}
      lower_to(aliases[alias], limits)
    end
    budget.differ = budget.differ or differs or false
  end
  if not is_same(planned, budget.planned) or not is_same(by_hand, budget.by_hand) then
    budget.learned = {}
  end
  budget.planned, budget.by_hand, budget.aliases = planned, by_hand, aliases
  budget.here.unsaved = true
end

-- Drops the settings of dead members if settings differ. If all are the same, nothing changes.
local function forget_settings_of_dead_members(budget)
  if not budget.differ then
    return
  end
  for name in pairs(budget.settings) do
    if is_dead(name) then
      combine_settings(budget)
      apply_quotas(budget)
      return
    end
  end
end

local function budget_of(account, midnight_us)
  local budget = budgets[account]
  if not budget then
    local packed = redis.call('GET', key('budget', account))
    if not packed then
      return nil
    end
    budget = cmsgpack.unpack(packed)
    if budget.format ~= FORMAT then
      for _, of in ipairs({'budget_queue', 'budget_returning', 'budget_waiters', 'budget_departures'}) do
        redis.call('UNLINK', key(of, account))
      end
      return nil
    end
    budget.here = {account = account, without_waiting = {}}
    budget.settings = budget.settings or {}
    bound(budget)
    budgets[account] = budget
    forget_settings_of_dead_members(budget)
  end
  if midnight_us and begin_day(budget.day, now + midnight_us) then
    -- Learned quotas hold for a day: Gemini may have raised its limits since.
    budget.learned = {}
    apply_quotas(budget)
    budget.here.unsaved = true
  end
  return budget
end

-- A limit set by hand is the most that is spent, and precedes the tier's. A quota that Gemini named
-- holds within it. So the order of commands does not matter.
function apply_quotas(budget)
  local of_aliases, by_hand, quotas = {}, {}, {}
  for _, limits in pairs(budget.aliases) do
    lower_to(of_aliases, limits)
  end
  lower_to(by_hand, budget.by_hand)
  lower_to(by_hand, of_aliases)
  for _, kind in ipairs(KINDS) do
    local name = kind.name
    local learned = budget.learned[name]
    quotas[name] = learned and math.min(learned, by_hand[name] or learned)
      or of_aliases[name] and by_hand[name] or budget.planned[name]
  end
  if is_same(quotas, budget.quotas) then
    return
  end
  set_limits(budget, quotas)
  budget.here.unsaved = true
  announce({
    corrected = {
      account = budget.here.account, quotas = budget.quotas, learned = budget.learned,
    },
  })
end

-- Notifies the member if the account is kept here.
function operations.look_up_budget(op)
  if budget_of(op.account) then
    redis.call('PUBLISH', key('to', member), cjson.encode({watched = {account = op.account}}))
  end
end

-- Adds what was sent before the account was kept here: within a window, and today.
function operations.count_budget(op)
  local budget = budget_of(op.account, op.midnight_us)
  if budget then
    count_in_minute(budget, amount(op.minute))
    add(budget.day.sent, amount(op.today), 1)
    budget.day.began = math.min(budget.day.began, now - math.min(op.began_us_ago, LONGEST_DAY))
    budget.here.unsaved = true
  end
end

-- Notifies the member if another account is charged for the calls of this one.
local function send_charged_account(budget)
  if budget.counts_as then
    local charged = {account = budget.here.account, to = budget.counts_as}
    redis.call('PUBLISH', key('to', member), cjson.encode({charged = charged}))
  end
end

local function add_alias(settings, name, by_hand)
  if settings.aliases[name] or next(by_hand) and size_of(settings.aliases) < MAX_ALIASES then
    settings.aliases[name] = next(by_hand) and by_hand or nil
  end
end

-- Notifies all members that settings differ, in the form of a corrected account, which earlier versions
-- can read.
local function announce_differing_settings(budget)
  announce({
    corrected = {
      account = budget.here.account, quotas = budget.quotas, learned = budget.learned,
      settings_differ = true,
    },
  })
end

-- Sets the quotas of the settings, and the learned ones if they are lost here. Returns the quotas that
-- hold: the learned ones, unless the settings have changed since.
function operations.open_budget(op)
  local budget = budget_of(op.account, op.midnight_us)
  local new = not budget
  if new then
    budget = new_budget()
    budget.here = {account = op.account, without_waiting = {}}
    budgets[op.account] = budget
    begin_day(budget.day, now + op.midnight_us)
    announce({watched = {account = op.account}})
  end
  budget.proven = budget.proven or op.proven
  set_minute(budget, op.minute_us)
  local settings = settings_of(budget, member)
  settings.planned, settings.by_hand = op.planned, op.by_hand or {}
  for alias, limits in pairs(op.aliases or {}) do
    add_alias(settings, alias, limits)
  end
  combine_settings(budget)
  if new and op.learned then
    budget.learned = op.learned
  end
  apply_quotas(budget)
  if budget.differ then
    announce_differing_settings(budget)
  end
  send_charged_account(budget)
  budget.here.unsaved = true
  return budget.quotas
end

-- What goes before a request that was made then. Requests that were made later but arrived earlier do
-- not count. If they are many, nothing counts, so that no request is refused by mistake.
local function ahead_of(budget, line, requested_at)
  local ahead = line == 'returning' and total(budget, 'returning') or waiting(budget)
  if ahead.requests == 0 then
    return ahead
  end
  local later = redis.call('ZRANGEBYSCORE', queue_key(budget, line), '(' .. whole(requested_at), '+inf',
    'LIMIT', 0, MAX_OVERTAKEN + 1)
  if #later > MAX_OVERTAKEN then
    return NOTHING
  end
  for _, entry in ipairs(later) do
    local request = request_of(budget, entry)
    add(ahead, request and request.cost or NOTHING, -1)
  end
  return ahead
end

-- Requests a reservation. A member that has not opened the account, or whose settings were lost with it,
-- opens it and requests again.
function operations.reserve(op)
  local budget = budget_of(op.account, op.midnight_us)
  if not budget or not budget.settings[member] then
    answer(member, op.ticket, {verdict = 'unopened'})
    return
  end
  if not op.wait then
    table.insert(budget.here.without_waiting, op)
    return
  end
  local line = op.line
  if line == 'yields_once' and waiting(budget).requests > 0 then
    line = 'queue'
  end
  local requested_at = arrival(op.waited_us, line == 'returning' and line or 'first')
  local deadline = now + op.time_limit_us
  local ahead, cost = ahead_of(budget, line, requested_at), amount(op.cost)
  local at, reason = opens_before(budget, deadline, ahead, cost)
  if reason then
    answer(member, op.ticket, reason)
  elseif at <= now and ahead.requests == 0 then
    grant(budget, member, op.ticket, cost)
  else
    local entry = member .. ' ' .. whole(op.ticket)
    put(budget, {entry = entry, cost = cost, deadline = deadline, line = line}, requested_at)
    add(share_of(budget, member)[queue_of(line)], cost, 1)
    budget.here.unsaved = true
  end
end

-- Serves the requests that do not wait, after those that do.
local function serve_without_waiting(budget)
  for _, op in ipairs(budget.here.without_waiting) do
    local ahead, cost = waiting(budget), amount(op.cost)
    local at, reason = opens_before(budget, now + op.time_limit_us, ahead, cost)
    if reason then
      answer(member, op.ticket, reason)
    elseif at <= now and ahead.requests == 0 then
      grant(budget, member, op.ticket, cost)
    else
      answer(member, op.ticket, {verdict = 'unavailable'})
    end
  end
end

-- Leaves the queue. A request that gives up is told how long it would have waited, unless it was
-- answered.
function operations.cancel_reserve(op)
  local budget = budget_of(op.account, op.midnight_us)
  local request = budget and request_of(budget, member .. ' ' .. whole(op.ticket))
  if not request then
    return nil
  end
  remove_request(budget, request)
  if op.give_up then
    local at, reason = budget_opens_at(budget, waiting(budget), request.cost)
    return reason or not_before(at)
  end
end

-- Reduces what a member has reserved, down to zero whatever Redis may have lost. Returns the part that
-- already counts at the account that is charged.
local function take_unsent(budget, name, cost)
  local share, taken = share_of(budget, name), amount(cost)
  take_from(share.unsent, taken)
  budget.here.unsaved = true
  local moved = amount(share.moved)
  if share.moved then
    take_from(share.moved, taken)
    take_from(moved, share.moved)
  end
  return moved
end

-- What a share has reserved and is not counted at another account.
local function unmoved(share)
  local unsent = amount(share.unsent)
  take_from(unsent, amount(share.moved))
  return unsent
end

function operations.give_back_budget(op)
  local budget = budget_of(op.account)
  if budget then
    take_unsent(budget, member, op.cost)
  end
end

-- A new member holds what its process held as an earlier member, whose requests are withdrawn. What is
-- not claimed was sent, or counts as sent when the earlier member is removed.
function operations.claim_budget(op)
  local budget = budget_of(op.account)
  if not budget then
    return
  end
  local before, share = op.from and budget.members[op.from], share_of(budget, member)
  add(share.unsent, amount(op.cost), 1)
  if before then
    forgotten = forgotten + forget_requests(budget, op.from, MAX_FORGOTTEN - forgotten)
    share.moved = amount(share.moved)
    add(share.moved, take_unsent(budget, op.from, op.cost), 1)
  end
  budget.here.unsaved = true
end

-- The name of a call that was sent. Its process can be another member when it settles.
local function name_of_call(op)
  return (op.by or member) .. ' ' .. whole(op.ticket)
end

-- Counts a reservation as sent now.
function operations.start_call(op)
  local budget = budget_of(op.account, op.midnight_us)
  if not budget then
    return
  end
  local left, cost = key('budget_left', op.account), amount(op.cost)
  take_from(cost, take_unsent(budget, member, cost))
  count(budget, cost)
  redis.call('ZADD', left, whole(now), name_of_call(op))
  redis.call('ZREMRANGEBYSCORE', left, '-inf', whole(now - budget.minute.window))
end

-- Returns once when a call was sent; nothing if that is longer ago than a window.
local function take_sent_at(op)
  local left, entry = key('budget_left', op.account), name_of_call(op)
  local at = tonumber(redis.call('ZSCORE', left, entry) or nil)
  redis.call('ZREM', left, entry)
  return at
end

-- Replaces what was counted for a call by its actual cost: nothing if it was refused. With ticket 0,
-- which no call has, only the day is corrected.
function operations.settle(op)
  local budget, at = budget_of(op.account, op.midnight_us), take_sent_at(op)
  if not budget then
    return
  end
  local counted, actual = amount(op.counted), amount(op.actual)
  if at then
    correct(budget, at, counted, actual)
  end
  -- A replica sends the command again if it does not know whether it was executed.
  local is_settled = not at and op.ticket ~= 0 and op.sent_us_ago < budget.minute.window
  if not is_settled and now - op.sent_us_ago >= budget.day.began then
    add(budget.day.sent, actual, 1)
    take_from(budget.day.sent, counted)
  end
  budget.here.unsaved = true
end

-- Refuses calls until the day ends: Gemini refused one because the day is used up.
function operations.close_day(op)
  local budget = budget_of(op.account)
  if budget then
    local until_then = now + math.min(op.for_us, LONGEST_DAY)
    budget.day.closed_until = math.max(budget.day.closed_until, until_then)
    budget.proven = true
    budget.here.unsaved = true
  end
end

function operations.pause(op)
  local budget = budget_of(op.account)
  if budget then
    local until_then = now + math.min(op.for_us, LONGEST_DAY)
    budget.paused_until = math.max(budget.paused_until, until_then)
    budget.here.unsaved = true
    announce({paused = {account = op.account, for_us = time_until(budget.paused_until)}})
  end
end

-- Sets the quotas that Gemini named. The others stay.
function operations.learn_quotas(op)
  local budget = budget_of(op.account)
  if budget then
    for _, kind in ipairs(KINDS) do
      budget.learned[kind.name] = op.quotas[kind.name] or budget.learned[kind.name]
    end
    apply_quotas(budget)
    budget.proven = true
    budget.here.unsaved = true
  end
end

-- Notes that Gemini has accepted a call of the account.
function operations.prove_budget(op)
  local budget = budget_of(op.account)
  if budget then
    budget.proven = true
    budget.here.unsaved = true
  end
end

-- Forgets learned quotas, a pause and a used-up day.
function operations.forget_quotas(op)
  local budget = budget_of(op.account)
  if budget then
    budget.learned, budget.counts_as = {}, nil
    apply_quotas(budget)
    budget.paused_until, budget.day.closed_until = 0, 0
    budget.here.unsaved = true
    announce({resumed = {account = op.account}})
  end
end

-- Whether the calls of one account are charged to the other, directly or through others.
local function is_charged_to(name, other)
  for _ = 1, MAX_ALIASES do
    local budget = budget_of(name)
    name = budget and budget.counts_as
    if not name or name == other then
      return name == other
    end
  end
  return true
end

-- Charges the calls of one account to another. What it has spent moves there once, however often the
-- command is sent. Limits set by hand and learned quotas hold there too. A replica that learned of it
-- from here (`from_replica`) moves only what its own calls have spent since.
function operations.transfer_budget(op)
  local budget = budget_of(op.account, op.midnight_us)
  local from = budget_of(op.from, op.midnight_us)
  if not budget or not from then
    return
  end
  if from.counts_as ~= op.account then
    if op.from_replica or is_charged_to(op.account, op.from) then
      -- There is a later change, or two replicas found opposite aliases, of which the first holds.
      local charged = {account = op.from, to = from.counts_as}
      redis.call('PUBLISH', key('to', member), cjson.encode({charged = charged}))
      return
    end
    from.counts_as = op.account
    announce({charged = {account = op.from, to = op.account}})
  end
  add_alias(settings_of(budget, member), op.from, op.by_hand or {})
  combine_settings(budget)
  for name, limit in pairs(from.learned) do
    budget.learned[name] = budget.learned[name] or limit
  end
  from.learned = {}
  apply_quotas(from)
  apply_quotas(budget)
  -- Reservations count at the other account from now on, and not again when they are sent.
  local unsent = amount()
  for _, share in pairs(from.members) do
    add(unsent, unmoved(share), 1)
    share.moved = amount(share.unsent)
  end
  local spent = amount(sent(from))
  add(spent, unsent, 1)
  count_in_minute(budget, spent)
  add(budget.day.sent, from.day.sent, 1)
  add(budget.day.sent, unsent, 1)
  budget.day.began = math.min(budget.day.began, from.day.began)
  budget.day.closed_until = math.max(budget.day.closed_until, from.day.closed_until)
  budget.paused_until = math.max(budget.paused_until, from.paused_until)
  from.here.departures = no_departures()
  from.sent, from.oldest, from.day.sent = amount(), nil, amount()
  from.here.departed, from.here.unsaved = true, true
end

function operations.budget_usage(op)
  local budget = budget_of(op.account, op.midnight_us)
  if not budget then
    return nil
  end
  local unsent, queue = total(budget, 'unsent'), waiting(budget)
  local quotas = {}
  for _, kind in ipairs(KINDS) do
    local used = kind.window == 'day' and budget.day.sent or sent(budget)
    quotas[kind.name] = {
      limit = budget.quotas[kind.name], used = used[kind.unit], reserved = unsent[kind.unit],
    }
  end
  local at, reason = budget_opens_at(budget, queue, amount({requests = 1, tokens = 1}))
  return {
    quotas = quotas,
    waiting = queue.requests,
    next_free_in_us = at and time_until(at) or reason and reason.retry_after_us,
    paused_for_us = budget.paused_until > now and time_until(budget.paused_until) or nil,
  }
end

-- Removes a dead member's requests, and counts its reservations as sent, since they may have been.
table.insert(removers, function(name, most)
  local removed_here = 0
  while removed_here < most do
    local account = redis.call('SRANDMEMBER', key('budgets_of', name))
    if not account then
      return removed_here
    end
    local budget = budget_of(account)
    local share = budget and budget.members[name]
    removed_here = removed_here + 1
    if share then
      removed_here = removed_here + forget_requests(budget, name, most - removed_here)
    end
    if share and redis.call('EXISTS', key('places', name, account)) == 1 then
      return most
    end
    if share and unmoved(share).requests > 0 then
      count(budget, unmoved(share))
    end
    if share then
      budget.members[name] = nil
      budget.here.unsaved = true
    end
    redis.call('UNLINK', key('places', name, account))
    redis.call('SREM', key('budgets_of', name), account)
  end
  return removed_here
end)

-- Loads the budgets whose waiting requests may fit now. They are served at the end of the call.
local function load_budgets_that_open()
  for _, account in ipairs(
    redis.call('ZRANGEBYSCORE', key('budget_openings'), '-inf', whole(now), 'LIMIT', 0, MAX_OPENED)
  ) do
    if not budget_of(account) then
      redis.call('ZREM', key('budget_openings'), account)
    end
  end
end

local function next_budget_opening()
  local first = redis.call('ZRANGE', key('budget_openings'), 0, 0, 'WITHSCORES')
  return tonumber(first[2]) or math.huge
end

local function keep(budget)
  local here, account = budget.here, budget.here.account
  budget.here = nil
  for name, share in pairs(budget.members) do
    if share.unsent.requests + share.queue.requests + share.returning.requests == 0 then
      budget.members[name] = nil
      redis.call('SREM', key('budgets_of', name), account)
    end
  end
  local kept = (budget.proven or next(budget.members)) and KEPT or KEPT_UNPROVEN
  redis.call('SET', key('budget', account), cmsgpack.pack(budget), 'PX', kept)
  if here.departed then
    -- Longer than it counts: the clock by which keys expire can be set.
    local window = math.ceil(budget.minute.window / 1000) + HOUR / 1000
    local departures = cmsgpack.pack(here.departures)
    redis.call('SET', key('budget_departures', account), departures, 'PX', math.min(kept, window))
    redis.call('PEXPIRE', key('budget_left', account), math.min(kept, window))
  end
  if next(budget.members) then
    for _, of in ipairs({'budget_queue', 'budget_returning', 'budget_waiters'}) do
      redis.call('PEXPIRE', key(of, account), KEPT)
    end
  end
end

-- Serves all budgets that this call uses.
local function serve_budgets()
  for account, budget in pairs(budgets) do
    local returning = serve_line(budget, 'returning', NOTHING)
    local queue = serve_line(budget, 'queue', total(budget, 'returning'))
    local look_at = math.min(returning, queue)
    serve_without_waiting(budget)
    if look_at < math.huge then
      redis.call('ZADD', key('budget_openings'), whole(look_at), account)
    else
      redis.call('ZREM', key('budget_openings'), account)
    end
    if budget.here.unsaved then
      keep(budget)
    end
  end
end
