-- Does what the member says, serves those who wait, and tells everybody what came of it.

local spoken = cjson.decode(ARGV[3])
local joins = spoken[1] and spoken[1].op == 'join'
bury_the_silent()
end_leases_that_are_over()
if not joins and not redis.call('ZSCORE', key('members'), member) then
  serve_semaphores()
  serve_budgets()
  publish_answers()
  return cjson.encode({expired = true})
end
redis.call('ZADD', key('members'), whole(now + tenure), member)

look_at_budgets_that_open()
local results = {}
for i, op in ipairs(spoken) do
  results[tostring(i - 1)] = operations[op.op](op)
end
local standing = serve_semaphores()
serve_budgets()
keep_last_arrival()
publish_answers()

local next_end = math.min(
  next_end_of_a_member(), next_end_of_a_lease(), next_opening_of_a_budget()
)
local opens_in
if not may_open() then
  opens_in = opens_at() - now
  next_end = math.min(next_end, opens_at())
end
return cjson.encode({
  results = results,
  answers = answers[member],
  semaphores = standing,
  look_again_in_us = next_end < math.huge and next_end - now or nil,
  opens_in_us = opens_in,
})
