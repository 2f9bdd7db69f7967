-- Executes a member's commands, serves waiting requests, and delivers the outcomes.

local others = other_format()
if others then
  return cjson.encode({other_format = others, format = FORMAT})
end
keep_clock()

local commands = cjson.decode(ARGV[3])
local is_joining = commands[1] and commands[1].op == 'join'
if is_joining then
  extend_silent_members()
end
end_silent_members()
remove_dead_members()
expire_leases()
if not is_joining and not is_alive(member) then
  serve_semaphores()
  serve_budgets()
  publish_answers()
  return cjson.encode({expired = true})
end
keep_alive(member)

load_budgets_that_open()
local results = {}
for i, op in ipairs(commands) do
  results[tostring(i - 1)] = operations[op.op](op)
end
if not retired then
  keep_last_arrivals()
end
local usage = serve_semaphores()
serve_budgets()
if retired then
  -- What it requested in this call is removed in the next call, if anything is left.
  end_member(member)
  forget_if_empty(member)
end
publish_answers()

local next_check = math.min(next_member_end(), next_lease_expiry(), next_budget_opening())
local opens_in
if not may_open() then
  opens_in = opens_at() - now
  next_check = math.min(next_check, opens_at())
end
return cjson.encode({
  results = results,
  answers = answers[member],
  semaphores = usage,
  check_again_in_us = next_check < math.huge and math.max(next_check - now, 0) or nil,
  opens_in_us = opens_in,
  stepped_us = stepped,
})
