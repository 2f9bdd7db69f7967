-- Budgets: what an account may spend, kept as the ledger of one replica alone keeps it (see
-- `budget::ledger`), and those of all replicas who wait for it.
--
-- budget_left:<account>       'replica ticket' -> when it left, for a window
-- budget_queue:<account>      'member ticket' -> when it asked
-- budget_returning:<account>  the same, of those who had a turn before and go before the queue
-- budget_waiters:<account>    'member ticket' -> its cost, deadline and line, packed
-- places:<member>:<account>    its tickets that wait there
-- budget_openings             account -> when those who wait for it are to be looked at again
--
-- Each operation names its account. Where it says midnight_us, that is how long the day in
-- California still lasts, of which only replicas know.

-- How long an account is kept that nobody uses, in milliseconds; and one that Gemini has never
-- answered for, since callers make up keys and models.
local KEPT = 2 * 24 * 3600 * 1000
local KEPT_UNPROVEN = 10 * 60 * 1000
local HOUR = 3600 * 1000000
-- No day is longer, nor is anything closed or paused for longer.
local LONGEST_DAY = 26 * HOUR
-- So many places of former members are given up in one call; the rest is when they are buried.
local MOST_FORGOTTEN = 250
-- So many accounts are looked at in one call because their time has come.
local MOST_OPENED = 25
-- The longest time that is told, in microseconds: cjson writes no more digits.
local FAR = 10000000000000
-- So many accounts are taken to be charged to another, and as many of those in turn.
local MOST_ALIASES = 32
-- So many who asked later but were heard earlier are told apart from those who go before.
local MOST_OVERTAKEN = 100

-- Those that this call of the script has to do with.
local budgets = {}

-- How many places of former members this call has given up.
local forgotten = 0

local function size_of(map)
  local size = 0
  for _ in pairs(map) do
    size = size + 1
  end
  return size
end

local function from_now(at)
  return math.min(math.ceil(at - now), FAR)
end

-- Why no waiting helps, or only waiting for the next day.
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
    return {verdict = 'day_exhausted', retry_after_us = from_now(reopens_at)}
  end
end

-- When a call could be reserved with so much ahead of it, or why it never or not today can.
local function budget_opens_at(budget, ahead, cost)
  local reason = impossible(budget, ahead, cost)
  if reason then
    return nil, reason
  end
  local start = math.max(now, budget.paused_until, opens_at())
  return rolling_opens_at(budget, ahead, cost, start)
end

local function not_before(at)
  return {verdict = 'not_before', retry_after_us = from_now(at)}
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

-- Who is yields_once waits in the queue too.
local function queue_of(line)
  return line == 'returning' and 'returning' or 'queue'
end

local function queue_key(budget, line)
  return key('budget_' .. queue_of(line), budget.here.account)
end

local function place_of(budget, entry)
  local waiter = redis.call('HGET', key('budget_waiters', budget.here.account), entry)
  if not waiter then
    return nil
  end
  local place = cmsgpack.unpack(waiter)
  place.entry = entry
  return place
end

local function put(budget, place, score)
  local waiter = cmsgpack.pack({cost = place.cost, deadline = place.deadline, line = place.line})
  redis.call('ZADD', queue_key(budget, place.line), whole(score), place.entry)
  redis.call('HSET', key('budget_waiters', budget.here.account), place.entry, waiter)
  local name, ticket = string.match(place.entry, '(%S+) (%S+)')
  redis.call('SADD', key('places', name, budget.here.account), ticket)
end

local function leave_place(budget, place)
  redis.call('ZREM', queue_key(budget, place.line), place.entry)
  redis.call('HDEL', key('budget_waiters', budget.here.account), place.entry)
  local name, ticket = string.match(place.entry, '(%S+) (%S+)')
  redis.call('SREM', key('places', name, budget.here.account), ticket)
  local share = share_of(budget, name)
  take_from(share[queue_of(place.line)], place.cost)
  budget.here.unsaved = true
end

-- Takes out so many places of a member at most. Gives how many.
local function forget_places(budget, name, most)
  local tickets = redis.call('SPOP', key('places', name, budget.here.account), most)
  for _, ticket in ipairs(tickets) do
    local place = place_of(budget, name .. ' ' .. ticket)
    if place then
      leave_place(budget, place)
    end
  end
  return #tickets
end

-- Redis, short of memory, has thrown away who waits: they find out at their deadlines.
local function forget_line(budget, line)
  redis.call('DEL', queue_key(budget, line))
  for _, share in pairs(budget.members) do
    share[line] = amount()
  end
  budget.here.unsaved = true
end

-- Lets those who wait in a line in for as long as there is room. Says when to look again.
local function serve_line(budget, line, ahead)
  while total(budget, line).requests > 0 do
    local first = redis.call('ZRANGE', queue_key(budget, line), 0, 0)[1]
    local place = first and place_of(budget, first)
    if not place then
      forget_line(budget, line)
      return math.huge
    end
    local name, ticket = string.match(first, '(%S+) (%S+)')
    local at, reason = opens_before(budget, place.deadline, ahead, place.cost)
    if is_dead(name) then
      if buried >= MOST_BURIED then
        return now
      end
      buried = buried + 1
      leave_place(budget, place)
    elseif reason then
      leave_place(budget, place)
      answer(name, ticket, reason)
    elseif at > now then
      if is_held_up(budget, place.cost) then
        -- Until something is sent or given back, or a member ends that has it.
        return math.huge
      end
      return math.ceil(at)
    elseif place.line == 'yields_once' and now < place.deadline
      and waiting(budget).requests > place.cost.requests
    then
      local last = redis.call('ZRANGE', queue_key(budget, line), -1, -1, 'WITHSCORES')[2]
      place.line = 'queue'
      put(budget, place, math.max(now, last + 1))
    else
      leave_place(budget, place)
      grant(budget, name, ticket, place.cost)
    end
  end
  return math.huge
end

-- A new day has begun when its end is told, which is another: replicas' clocks differ a little.
-- Says whether it has.
local function begin_day(day, ends)
  local begins = ends > day.ends + HOUR
  if begins then
    day.began, day.ends, day.sent = math.max(day.began, day.ends), ends, amount()
  end
  return begins
end

local apply_quotas

-- Nothing is further ahead of now than it can have been set.
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

-- What the settings of a member say: of this account, with what of it is set by hand, and what is set
-- by hand for those that are charged here.
local function settings_of(budget, name)
  local settings = budget.settings[name]
  if not settings then
    settings = {planned = {}, by_hand = {}, aliases = {}}
    budget.settings[name] = settings
  end
  return settings
end

-- Of each quota, the lowest limit counts that the settings of a member name. What a member says ends
-- with it, unless no other has said anything.
local function combine_settings(budget)
  local living, count = {}, 0
  for name, settings in pairs(budget.settings) do
    if not is_dead(name) then
      living[name], count = settings, count + 1
    end
  end
  if count == 0 then
    return
  end
  local planned, by_hand, aliases, first = {}, {}, {}, nil
  budget.settings, budget.differ = living, false
  for _, settings in pairs(living) do
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

-- Where settings differ, those of a member that has ended do not count any more. Where all are the
-- same there is nothing to look for.
local function forget_settings_of_the_dead(budget)
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
    budget.here = {account = account, impatient = {}}
    budget.settings = budget.settings or {}
    bound(budget)
    budgets[account] = budget
    forget_settings_of_the_dead(budget)
  end
  if midnight_us and begin_day(budget.day, now + midnight_us) then
    -- What Gemini taught counts for a day: it may have raised its limits since.
    budget.learned = {}
    apply_quotas(budget)
    budget.here.unsaved = true
  end
  return budget
end

-- What was set by hand is the most that is spent, and counts before what the tier says. What Gemini
-- named counts within it. So it does not matter who spoke in which order.
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

-- Tells the member whether the account is kept here.
function operations.look_up_budget(op)
  if budget_of(op.account) then
    redis.call('PUBLISH', key('to', member), cjson.encode({watched = {account = op.account}}))
  end
end

-- What left before the account was kept here: within a window, and today.
function operations.count_budget(op)
  local budget = budget_of(op.account, op.midnight_us)
  if budget then
    count_in_minute(budget, amount(op.minute))
    add(budget.day.sent, amount(op.today), 1)
    budget.day.began = math.min(budget.day.began, now - math.min(op.began_us_ago, LONGEST_DAY))
    budget.here.unsaved = true
  end
end

-- Tells the member which account is charged for the calls of this one, if another is.
local function tell_who_is_charged(budget)
  if budget.counts_as then
    local charged = {account = budget.here.account, to = budget.counts_as}
    redis.call('PUBLISH', key('to', member), cjson.encode({charged = charged}))
  end
end

local function add_alias(settings, name, by_hand)
  if settings.aliases[name] or next(by_hand) and size_of(settings.aliases) < MOST_ALIASES then
    settings.aliases[name] = next(by_hand) and by_hand or nil
  end
end

-- Tells all members that the settings of some differ: a corrected account, as those of an earlier
-- version know it.
local function tell_that_settings_differ(budget)
  announce({
    corrected = {
      account = budget.here.account, quotas = budget.quotas, learned = budget.learned,
      settings_differ = true,
    },
  })
end

-- Says what the settings are, and what Gemini taught, should it be forgotten here. Gives what
-- counts: what Gemini taught, unless the settings changed since.
function operations.open_budget(op)
  local budget = budget_of(op.account, op.midnight_us)
  local new = not budget
  if new then
    budget = new_budget()
    budget.here = {account = op.account, impatient = {}}
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
    tell_that_settings_differ(budget)
  end
  tell_who_is_charged(budget)
  budget.here.unsaved = true
  return budget.quotas
end

-- What goes before one who asked then. Those who asked later and were heard earlier do not; where
-- they are many, nothing is taken to go before, so that nobody is refused in error.
local function ahead_of(budget, line, asked_at)
  local ahead = line == 'returning' and total(budget, 'returning') or waiting(budget)
  if ahead.requests == 0 then
    return ahead
  end
  local later = redis.call('ZRANGEBYSCORE', queue_key(budget, line), '(' .. whole(asked_at), '+inf',
    'LIMIT', 0, MOST_OVERTAKEN + 1)
  if #later > MOST_OVERTAKEN then
    return NOTHING
  end
  for _, entry in ipairs(later) do
    local place = place_of(budget, entry)
    add(ahead, place and place.cost or NOTHING, -1)
  end
  return ahead
end

-- Asks for the requests and tokens that a call costs. A member that has not opened the account, or
-- whose settings were forgotten with it, opens it and asks again.
function operations.reserve(op)
  local budget = budget_of(op.account, op.midnight_us)
  if not budget or not budget.settings[member] then
    answer(member, op.ticket, {verdict = 'unopened'})
    return
  end
  if not op.wait then
    table.insert(budget.here.impatient, op)
    return
  end
  local line = op.line
  if line == 'yields_once' and waiting(budget).requests > 0 then
    line = 'queue'
  end
  local asked_at = arrival(op.waited_us, line == 'returning' and line or 'first')
  local deadline = now + op.patience_us
  local ahead, cost = ahead_of(budget, line, asked_at), amount(op.cost)
  local at, reason = opens_before(budget, deadline, ahead, cost)
  if reason then
    answer(member, op.ticket, reason)
  elseif at <= now and ahead.requests == 0 then
    grant(budget, member, op.ticket, cost)
  else
    local entry = member .. ' ' .. whole(op.ticket)
    put(budget, {entry = entry, cost = cost, deadline = deadline, line = line}, asked_at)
    add(share_of(budget, member)[queue_of(line)], cost, 1)
    budget.here.unsaved = true
  end
end

-- Who does not wait gets what those leave who do.
local function serve_impatient(budget)
  for _, op in ipairs(budget.here.impatient) do
    local ahead, cost = waiting(budget), amount(op.cost)
    local at, reason = opens_before(budget, now + op.patience_us, ahead, cost)
    if reason then
      answer(member, op.ticket, reason)
    elseif at <= now and ahead.requests == 0 then
      grant(budget, member, op.ticket, cost)
    else
      answer(member, op.ticket, {verdict = 'unavailable'})
    end
  end
end

-- Leaves the queue. Who gives up hears what it would have had to wait for, unless it was answered.
function operations.leave_budget(op)
  local budget = budget_of(op.account, op.midnight_us)
  local place = budget and place_of(budget, member .. ' ' .. whole(op.ticket))
  if not place then
    return nil
  end
  leave_place(budget, place)
  if op.give_up then
    local at, reason = budget_opens_at(budget, waiting(budget), place.cost)
    return reason or not_before(at)
  end
end

-- Less of what a member has reserved: at least nothing, whatever Redis may have forgotten. Gives what of
-- it counts already at the account that is charged.
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

-- What a share has reserved and does not count anywhere else.
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

-- A new member holds what it held as the member that it was before, and has no places any more as
-- that one. What is not claimed of what that one held has left, or is lost with its end.
function operations.claim_budget(op)
  local budget = budget_of(op.account)
  if not budget then
    return
  end
  local before, share = op.from and budget.members[op.from], share_of(budget, member)
  add(share.unsent, amount(op.cost), 1)
  if before then
    forgotten = forgotten + forget_places(budget, op.from, MOST_FORGOTTEN - forgotten)
    share.moved = amount(share.moved)
    add(share.moved, take_unsent(budget, op.from, op.cost), 1)
  end
  budget.here.unsaved = true
end

-- By what name one is known that has left: its replica can be another member when it settles.
local function entry_of_sent(op)
  return (op.by or member) .. ' ' .. whole(op.ticket)
end

-- What was reserved leaves now.
function operations.depart(op)
  local budget = budget_of(op.account, op.midnight_us)
  if not budget then
    return
  end
  local left, cost = key('budget_left', op.account), amount(op.cost)
  take_from(cost, take_unsent(budget, member, cost))
  count(budget, cost)
  redis.call('ZADD', left, whole(now), entry_of_sent(op))
  redis.call('ZREMRANGEBYSCORE', left, '-inf', whole(now - budget.minute.window))
end

-- When it left, which is asked once; nothing where that is longer ago than a window.
local function left_at(op)
  local left, entry = key('budget_left', op.account), entry_of_sent(op)
  local at = tonumber(redis.call('ZSCORE', left, entry) or nil)
  redis.call('ZREM', left, entry)
  return at
end

-- What left so long ago and was counted cost the actual amount: nothing where it was refused. With the
-- ticket 0, by which no call leaves, only the day is corrected.
function operations.settle(op)
  local budget, at = budget_of(op.account, op.midnight_us), left_at(op)
  if not budget then
    return
  end
  local counted, actual = amount(op.counted), amount(op.actual)
  if at then
    correct(budget, at, counted, actual)
  end
  -- A replica that does not know whether it was heard says it again.
  local is_settled = not at and op.ticket ~= 0 and op.left_us_ago < budget.minute.window
  if not is_settled and now - op.left_us_ago >= budget.day.began then
    add(budget.day.sent, actual, 1)
    take_from(budget.day.sent, counted)
  end
  budget.here.unsaved = true
end

-- Gemini refused a call because the day is used up: nothing goes for so long.
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
    announce({paused = {account = op.account, for_us = from_now(budget.paused_until)}})
  end
end

-- Gemini named quotas; the others stay as they are.
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

-- Gemini has answered a call of the account.
function operations.prove_budget(op)
  local budget = budget_of(op.account)
  if budget then
    budget.proven = true
    budget.here.unsaved = true
  end
end

-- Forgets what Gemini said: its quotas, a pause and a used-up day.
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

-- Whether the calls of the one are charged to the other, by way of others or not.
local function is_charged_to(name, other)
  for _ = 1, MOST_ALIASES do
    local budget = budget_of(name)
    name = budget and budget.counts_as
    if not name or name == other then
      return name == other
    end
  end
  return true
end

-- Gemini charges the calls of one account to another: what it has spent moves there, once, whoever
-- says so and how often; and what was set by hand for it, and what Gemini named, counts there too.
-- One that has `heard` so from here moves what its own calls have spent since, and no more.
function operations.take_over_budget(op)
  local budget = budget_of(op.account, op.midnight_us)
  local from = budget_of(op.from, op.midnight_us)
  if not budget or not from then
    return
  end
  if from.counts_as ~= op.account then
    if op.heard or is_charged_to(op.account, op.from) then
      -- There is later news, or two replicas have found opposite things, of which the first holds.
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
  -- What is reserved counts at the other account from now on, and not once more when it leaves.
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
    next_free_in_us = at and from_now(at) or reason and reason.retry_after_us,
    paused_for_us = budget.paused_until > now and from_now(budget.paused_until) or nil,
  }
end

-- The places of a member that is none any more are void, and what it had reserved may have left,
-- for all that anybody knows.
table.insert(burials, function(name, most)
  local count_buried = 0
  while count_buried < most do
    local account = redis.call('SRANDMEMBER', key('budgets_of', name))
    if not account then
      return count_buried
    end
    local budget = budget_of(account)
    local share = budget and budget.members[name]
    count_buried = count_buried + 1
    if share then
      count_buried = count_buried + forget_places(budget, name, most - count_buried)
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
  return count_buried
end)

-- Those whose time has come are served at the end of the call.
local function look_at_budgets_that_open()
  for _, account in ipairs(
    redis.call('ZRANGEBYSCORE', key('budget_openings'), '-inf', whole(now), 'LIMIT', 0, MOST_OPENED)
  ) do
    if not budget_of(account) then
      redis.call('ZREM', key('budget_openings'), account)
    end
  end
end

local function next_opening_of_a_budget()
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
    -- Longer than it counts: the clock by which keys end can be set.
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

-- Serves all that this call has to do with.
local function serve_budgets()
  for account, budget in pairs(budgets) do
    local returning = serve_line(budget, 'returning', NOTHING)
    local queue = serve_line(budget, 'queue', total(budget, 'returning'))
    local look_at = math.min(returning, queue)
    serve_impatient(budget)
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
