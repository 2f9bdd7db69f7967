-- What is spent of an account's quotas. It counts exactly as `model::rolling` and `model::day` do in
-- one process; `model::minute` explains the minute and its margins.
--
-- budget:<account>             what is spent, and the members' shares, packed: see new_budget()
-- budget_departures:<account>  what was sent within the last window, packed: see departures_of()
-- budgets_of:<member>          the accounts in which a member has a share
--
-- UNITS are the resources, and KINDS the quota kinds: each has a name, a unit, a window, 'day' or a
-- sliding one, and how much of the window may be sent at once, in 60ths. All sliding windows of a budget have the length of its minute. An amount has a number for each unit, and quotas have a limit for each limited kind.
-- `budget.here` is state of this call of the script only; it is not stored.

local function amount(of)
  local all = {}
  for _, unit in ipairs(UNITS) do
    all[unit] = of and of[unit] or 0
  end
  return all
end

local NOTHING = amount()

local function add(to, what, times)
  for _, unit in ipairs(UNITS) do
    to[unit] = to[unit] + times * what[unit]
  end
end

local function take_from(amounts, what)
  for _, unit in ipairs(UNITS) do
    amounts[unit] = math.max(amounts[unit] - what[unit], 0)
  end
end

-- The kinds with a sliding window.
local ROLLING = {}
for _, kind in ipairs(KINDS) do
  if kind.window ~= 'day' then
    table.insert(ROLLING, kind)
  end
end

local function new_budget()
  local drained_at = {}
  for _, kind in ipairs(ROLLING) do
    drained_at[kind.name] = 0
  end
  return {
    format = FORMAT,
    quotas = {},
    -- What was sent within the window; and for each quota per minute, when its backlog is drained.
    sent = amount(),
    drained_at = drained_at,
    day = {began = now, ends = 0, sent = amount(), closed_until = 0},
    paused_until = 0,
    -- Whether Gemini has ever accepted a call of the account.
    proven = false,
    -- The settings of each member, and whether those of some differ: see settings_of().
    settings = {},
    differ = false,
    -- The lowest limit of each kind in the settings of any member; and the lowest of those set by hand
    -- for this model.
    planned = {},
    by_hand = {},
    -- The lowest limits set by hand for the accounts that are charged here, by account.
    aliases = {},
    -- The quotas that Gemini named. They hold until the day ends.
    learned = {},
    -- Each member's share: what it has reserved and not sent, and what it requests in each line.
    members = {},
  }
end

local function share_of(budget, name)
  local share = budget.members[name]
  if not share then
    share = {unsent = amount(), queue = amount(), returning = amount()}
    budget.members[name] = share
    redis.call('SADD', key('budgets_of', name), budget.here.account)
  end
  return share
end

local function total(budget, ...)
  local sum = amount()
  for _, share in pairs(budget.members) do
    for _, part in ipairs({...}) do
      add(sum, share[part], 1)
    end
  end
  return sum
end

local function waiting(budget)
  return total(budget, 'queue', 'returning')
end

local function set_minute(budget, length)
  local window = length + length / 200
  budget.minute = {
    length = length, window = window, burst = window / 60, jitter = length / 2000,
    cell = length / 1024,
  }
end

local function cell(budget, at)
  return math.floor(at / budget.minute.cell)
end

local function no_departures()
  local departures = {last = {}}
  for _, unit in ipairs(UNITS) do
    departures[unit] = {}
  end
  return departures
end

-- What was sent within the last window, oldest first: for each cell of the grid, when the last call
-- was sent, and how much. There are many, so they are read only when needed.
local function departures_of(budget)
  local here = budget.here
  if here.departures then
    return here.departures
  end
  local packed = redis.call('GET', key('budget_departures', here.account))
  local departures = packed and cmsgpack.unpack(packed) or no_departures()
  for i = #departures.last, 1, -1 do
    if departures.last[i] <= now then
      break
    end
    departures.last[i] = now
  end
  local old = 0
  while departures.last[old + 1] and departures.last[old + 1] + budget.minute.window <= now do
    old = old + 1
  end
  for _, list in pairs(departures) do
    for i = 1, old > 0 and #list or 0 do
      list[i] = list[i + old]
    end
  end
  budget.sent = amount()
  for _, unit in ipairs(UNITS) do
    for _, sent in ipairs(departures[unit]) do
      budget.sent[unit] = budget.sent[unit] + sent
    end
  end
  budget.oldest = departures.last[1]
  here.departures = departures
  here.unsaved = true
  return departures
end

local function sent(budget)
  if budget.oldest and budget.oldest + budget.minute.window <= now then
    departures_of(budget)
  end
  return budget.sent
end

-- The time in which an amount becomes available.
local function time_for(budget, kind, cost)
  return math.ceil(budget.minute.window * (cost / math.max(budget.quotas[kind.name], 1)))
end

-- When the backlog would be drained if nothing had been sent before the cell at the index.
local function drained_after(budget, kind, index)
  local departures, drained_at = departures_of(budget), 0
  for i = index, #departures.last do
    local cost = departures[kind.unit][i]
    if cost > 0 then
      drained_at = math.max(drained_at, departures.last[i]) + time_for(budget, kind, cost)
    end
  end
  return drained_at
end

local function set_limits(budget, quotas)
  for _, kind in ipairs(KINDS) do
    local name, limit = kind.name, quotas[kind.name]
    if limit ~= budget.quotas[name] then
      budget.quotas[name] = limit
      if limit and budget.drained_at[name] then
        local drained_at = drained_after(budget, kind, 1)
        budget.drained_at[name] = math.min(drained_at, now + budget.minute.window)
      end
    end
  end
end

-- Counts a cost as sent now, in the minute.
local function count_in_minute(budget, what)
  local departures = departures_of(budget)
  local at = #departures.last
  if at == 0 or cell(budget, departures.last[at]) ~= cell(budget, now) then
    at = at + 1
    for _, unit in ipairs(UNITS) do
      departures[unit][at] = 0
    end
  end
  departures.last[at] = now
  budget.oldest = departures.last[1]
  for _, unit in ipairs(UNITS) do
    departures[unit][at] = departures[unit][at] + what[unit]
  end
  add(budget.sent, what, 1)
  for _, kind in ipairs(ROLLING) do
    local cost = what[kind.unit]
    if budget.quotas[kind.name] and cost > 0 then
      local drained_at = math.max(budget.drained_at[kind.name], now) + time_for(budget, kind, cost)
      budget.drained_at[kind.name] = math.min(drained_at, now + 2 * budget.minute.window)
    end
  end
  budget.here.departed = true
  budget.here.unsaved = true
end

-- Counts a cost as sent now, in the minute and in the day.
local function count(budget, what)
  count_in_minute(budget, what)
  add(budget.day.sent, what, 1)
end

-- Replaces what was counted for a call by its actual cost, unless it no longer counts.
local function correct(budget, sent_at, counted, actual)
  local departures = departures_of(budget)
  local index = #departures.last
  while index > 1 and departures.last[index - 1] >= sent_at do
    index = index - 1
  end
  if index == 0 or cell(budget, departures.last[index]) ~= cell(budget, sent_at) then
    return
  end
  for _, unit in ipairs(UNITS) do
    local before = departures[unit][index]
    -- It may have been taken out, and another call have been sent in the same cell since.
    departures[unit][index] = math.max(before - counted[unit], 0) + actual[unit]
    budget.sent[unit] = budget.sent[unit] - before + departures[unit][index]
  end
  budget.here.departed = true
  for _, kind in ipairs(ROLLING) do
    local more = actual[kind.unit] - counted[kind.unit]
    local drained_at = budget.drained_at[kind.name]
    if budget.quotas[kind.name] and more > 0 then
      -- Estimates that are far too low must not block the quota for longer than a minute.
      local late = math.min(drained_at + time_for(budget, kind, more), now + budget.minute.window)
      budget.drained_at[kind.name] = math.max(late, drained_at)
    elseif budget.quotas[kind.name] and more < 0 then
      -- A bucket that was full in between did not keep what is given back now. So the backlog is at
      -- least that of the later calls alone.
      local less = drained_at - time_for(budget, kind, -more)
      less = math.max(less, drained_after(budget, kind, index))
      budget.drained_at[kind.name] = math.min(less, drained_at)
    end
  end
end

-- When the window has room: a lower bound if calls that are not yet sent have to make the room.
local function window_opens_at(budget, unit, excess)
  if excess <= 0 then
    return now
  end
  if excess <= budget.sent[unit] then
    local departures, freed = departures_of(budget), 0
    for i, last in ipairs(departures.last) do
      freed = freed + departures[unit][i]
      if freed >= excess then
        return last + budget.minute.window
      end
    end
  end
  return now + budget.minute.window
end

local function tolerance_and_jitter(budget, kind, cost)
  local burst = math.max(budget.minute.burst * kind.burst, time_for(budget, kind, 1))
  local tolerance = math.max(burst - time_for(budget, kind, cost), 0)
  return tolerance, math.max(budget.minute.jitter, tolerance / 2)
end

-- The first moment at which the cost can be reserved behind `ahead`, none of which is sent before
-- `start`; and the first quota that has no room until then: `quota` if that is at `start`.
local function rolling_opens_at(budget, ahead, cost, start, quota)
  local all_unsent, opens_at = total(budget, 'unsent'), start
  for _, kind in ipairs(ROLLING) do
    local unit, limit = kind.unit, budget.quotas[kind.name]
    if limit and cost[unit] > 0 then
      local drained_at, unsent = budget.drained_at[kind.name], all_unsent[unit]
      if unsent > 0 then
        drained_at = math.max(drained_at, now) + time_for(budget, kind, unsent)
      end
      if ahead[unit] > 0 then
        drained_at = math.max(drained_at, start) + time_for(budget, kind, ahead[unit])
      end
      local tolerance, jitter = tolerance_and_jitter(budget, kind, cost[unit])
      local excess = sent(budget)[unit] + unsent + ahead[unit] + cost[unit] - limit
      local window = window_opens_at(budget, unit, excess)
      local at = math.max(window, drained_at + jitter - tolerance)
      if at > opens_at then
        opens_at, quota = at, kind.name
      end
    end
  end
  return opens_at, quota
end

-- Whether reservations leave no room, so that waiting alone does not help.
local function is_held_up(budget, cost)
  local all_unsent = total(budget, 'unsent')
  for _, kind in ipairs(ROLLING) do
    local limit = budget.quotas[kind.name]
    local unsent, needed = all_unsent[kind.unit], cost[kind.unit]
    if limit and unsent > 0 and needed > 0 then
      local tolerance, jitter = tolerance_and_jitter(budget, kind, needed)
      if unsent + needed > limit or time_for(budget, kind, unsent) + jitter > tolerance then
        return true
      end
    end
  end
  return false
end
