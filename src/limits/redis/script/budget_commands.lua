-- The commands about budgets.

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

-- What is ahead of a request that was made at this time. Requests that were made later but arrived
-- earlier do not count. If they are many, nothing counts, so that no request is refused by mistake.
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

-- Leaves the queue. The result is how long the request would have waited, unless it was answered
-- before.
function operations.cancel_reserve(op)
  local budget = budget_of(op.account, op.midnight_us)
  local request = budget and request_of(budget, member .. ' ' .. whole(op.ticket))
  if not request then
    return nil
  end
  remove_request(budget, request)
  if op.give_up then
    local at, reason, quota = budget_opens_at(budget, waiting(budget), request.cost)
    return reason or not_before(at, quota)
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

-- Starts no call until then, of several such times until the latest: Gemini refused one for this kind of
-- quota, if it is known which.
local function pause_until(budget, until_then, kind)
  if until_then > budget.paused_until then
    budget.paused_until, budget.paused_for = until_then, kind
  end
end

function operations.pause(op)
  local budget = budget_of(op.account)
  if budget then
    pause_until(budget, now + math.min(op.for_us, LONGEST_DAY), op.kind)
    budget.here.unsaved = true
    announce({
      paused = {
        account = op.account, for_us = time_until(budget.paused_until), kind = budget.paused_for,
      },
    })
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
    budget.paused_until, budget.paused_for, budget.day.closed_until = 0, nil, 0
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
  pause_until(budget, from.paused_until, from.paused_for)
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
    paused_quota = budget.paused_until > now and budget.paused_for or nil,
    day_closed_for_us = budget.day.closed_until > now and time_until(budget.day.closed_until) or nil,
  }
end
