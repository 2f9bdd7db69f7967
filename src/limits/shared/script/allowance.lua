-- What is spent of an account's quotas, counted as one replica alone counts it: see
-- `budget::allowance`, and `budget::minute` for how the minute and its margins are chosen.
--
-- budget:<account>             what is spent and who has a share in it, packed: see new_budget()
-- budget_departures:<account>  what left within the last window, packed: see departures_of()
-- budgets_of:<member>          the accounts in which a member has a share
--
-- An amount is {requests = , tokens = }, and what is counted is either in `unit`. `budget.here` is
-- what is known of a budget in this call of the script only.

local function amount(requests, tokens)
  return {requests = requests, tokens = tokens}
end

local NOTHING = amount(0, 0)

local function add(to, what, times)
  to.requests = to.requests + times * what.requests
  to.tokens = to.tokens + times * what.tokens
end

local function new_budget()
  return {
    format = FORMAT,
    -- Of each allowance: its limit, if any; what left within the window; when the backlog of it
    -- is drained.
    requests = {sent = 0, drained_at = 0},
    tokens = {sent = 0, drained_at = 0},
    day = {began = now, ends = 0, sent = 0, closed_until = 0},
    paused_until = 0,
    -- Whether Gemini has ever answered for it, so that nobody made it up.
    proven = false,
    -- What the settings said last; and which of it was set by hand for this model.
    planned = {},
    by_hand = {},
    -- What was set by hand for the accounts that turned out to be charged here, by their names.
    aliases = {},
    -- What Gemini named, which counts until the day is over.
    learned = {},
    -- Each member's share: what it has reserved and not sent, what it asks for in each line.
    members = {},
  }
end

local function share_of(budget, name)
  local share = budget.members[name]
  if not share then
    share = {unsent = amount(0, 0), queue = amount(0, 0), returning = amount(0, 0)}
    budget.members[name] = share
    redis.call('SADD', key('budgets_of', name), budget.here.account)
  end
  return share
end

local function total(budget, ...)
  local sum = amount(0, 0)
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

-- What left within the last window, oldest first: for each cell of the grid, when the last of it
-- left and how much. They are many, so that they are read only where they are needed.
local function departures_of(budget)
  local here = budget.here
  if here.departures then
    return here.departures
  end
  local packed = redis.call('GET', key('budget_departures', here.account))
  local departures = packed and cmsgpack.unpack(packed) or {last = {}, requests = {}, tokens = {}}
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
  for _, unit in ipairs({'requests', 'tokens'}) do
    budget[unit].sent = 0
    for _, sent in ipairs(departures[unit]) do
      budget[unit].sent = budget[unit].sent + sent
    end
  end
  budget.oldest = departures.last[1]
  here.departures = departures
  here.unsaved = true
  return departures
end

local function sent(budget, unit)
  if budget.oldest and budget.oldest + budget.minute.window <= now then
    departures_of(budget)
  end
  return budget[unit].sent
end

-- In what time an amount flows in.
local function time_for(budget, unit, cost)
  return math.ceil(budget.minute.window * (cost / math.max(budget[unit].limit, 1)))
end

-- When the backlog is drained if nothing had left before the departures at the index.
local function drained_after(budget, unit, index)
  local departures, drained_at = departures_of(budget), 0
  for i = index, #departures.last do
    local left = math.max(drained_at, departures.last[i])
    drained_at = left + time_for(budget, unit, departures[unit][i])
  end
  return drained_at
end

local function set_limit_of(budget, unit, limit)
  if limit == budget[unit].limit then
    return
  end
  budget[unit].limit = limit
  if limit then
    local drained_at = drained_after(budget, unit, 1)
    budget[unit].drained_at = math.min(drained_at, now + budget.minute.window)
  end
end

-- Counts as leaving now, in the minute.
local function count_in_minute(budget, what)
  local departures = departures_of(budget)
  local at = #departures.last
  if at == 0 or cell(budget, departures.last[at]) ~= cell(budget, now) then
    at = at + 1
    departures.requests[at], departures.tokens[at] = 0, 0
  end
  departures.last[at] = now
  budget.oldest = departures.last[1]
  for unit, cost in pairs(what) do
    departures[unit][at] = departures[unit][at] + cost
    local allowance = budget[unit]
    allowance.sent = allowance.sent + cost
    if allowance.limit then
      local drained_at = math.max(allowance.drained_at, now) + time_for(budget, unit, cost)
      allowance.drained_at = math.min(drained_at, now + 2 * budget.minute.window)
    end
  end
  budget.here.departed = true
  budget.here.unsaved = true
end

-- Counts as leaving now, in the minute and in the day.
local function count(budget, what)
  count_in_minute(budget, what)
  budget.day.sent = budget.day.sent + what.requests
end

-- What left then and was counted turns out to be the actual. Without effect when it no longer
-- counts.
local function correct(budget, unit, left_at, counted, actual)
  local departures = departures_of(budget)
  local index = #departures.last
  while index > 1 and departures.last[index - 1] >= left_at do
    index = index - 1
  end
  if index == 0 or cell(budget, departures.last[index]) ~= cell(budget, left_at) then
    return
  end
  local allowance, before = budget[unit], departures[unit][index]
  -- It may have been taken out, and something else have left in the same cell since.
  departures[unit][index] = math.max(before - counted, 0) + actual
  allowance.sent = allowance.sent - before + departures[unit][index]
  budget.here.departed = true
  if not allowance.limit then
    return
  end
  local drained_at = allowance.drained_at
  if actual > counted then
    -- Estimates that are far too low must not close the quota for longer than a minute.
    local late = drained_at + time_for(budget, unit, actual - counted)
    allowance.drained_at = math.max(math.min(late, now + budget.minute.window), drained_at)
  else
    -- A bucket that was full in between has not kept what is given back now: the backlog is at
    -- least what those who left since would have made alone.
    local less = drained_at - time_for(budget, unit, counted - actual)
    less = math.max(less, drained_after(budget, unit, index))
    allowance.drained_at = math.min(less, drained_at)
  end
end

-- When the window has room: a lower bound where what has not left yet has to make it.
local function window_opens_at(budget, unit, excess)
  if excess <= 0 then
    return now
  end
  if excess <= budget[unit].sent then
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

local function tolerance_and_jitter(budget, unit, cost)
  local burst = math.max(budget.minute.burst, time_for(budget, unit, 1))
  local tolerance = math.max(burst - time_for(budget, unit, cost), 0)
  return tolerance, math.max(budget.minute.jitter, tolerance / 2)
end

-- The first moment at which the cost can be reserved by one who has `ahead` before it; none of
-- those goes before `start`.
local function allowance_opens_at(budget, unit, ahead, cost, start)
  local limit = budget[unit].limit
  if not limit then
    return start
  end
  local drained_at, unsent = budget[unit].drained_at, total(budget, 'unsent')[unit]
  if unsent > 0 then
    drained_at = math.max(drained_at, now) + time_for(budget, unit, unsent)
  end
  if ahead > 0 then
    drained_at = math.max(drained_at, start) + time_for(budget, unit, ahead)
  end
  local tolerance, jitter = tolerance_and_jitter(budget, unit, cost)
  local excess = sent(budget, unit) + unsent + ahead + cost - limit
  return math.max(start, window_opens_at(budget, unit, excess), drained_at + jitter - tolerance)
end

-- Whether what is unsent leaves no room, so that no passing of time can help.
local function is_held_up(budget, unit, cost)
  local limit, unsent = budget[unit].limit, total(budget, 'unsent')[unit]
  if not limit or unsent == 0 then
    return false
  end
  local tolerance, jitter = tolerance_and_jitter(budget, unit, cost)
  return unsent + cost > limit or time_for(budget, unit, unsent) + jitter > tolerance
end
