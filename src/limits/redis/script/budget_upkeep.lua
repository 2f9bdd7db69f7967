-- What happens to budgets at the end of a call, over time, and when a member ends.

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
