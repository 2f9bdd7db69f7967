-- The day, the settings of all members, and the quotas that hold.

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
