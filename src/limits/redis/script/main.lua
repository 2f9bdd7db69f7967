-- Does what the member says, serves those who wait, and tells everybody what came of it.

local others = other_format()
if others then
  return cjson.encode({other_format = others, format = FORMAT})
end
keep_clock()

local spoken = cjson.decode(ARGV[3])
local joins = spoken[1] and spoken[1].op == 'join'
if joins then
  spare_the_silent()
end
end_the_silent()
bury_the_dead()
end_leases_that_are_over()
if not joins and not is_alive(member) then
  serve_semaphores()
  serve_budgets()
  publish_answers()
  return cjson.encode({expired = true})
end
live(member)

look_at_budgets_that_open()
local results = {}
for i, op in ipairs(spoken) do
  results[tostring(i - 1)] = operations[op.op](op)
end
if not retired then
  keep_last_arrivals()
end
local standing = serve_semaphores()
serve_budgets()
if retired then
  -- What it said in this call is buried in the next, where there is any.
  end_member(member)
  forget_if_buried(member)
end
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
  look_again_in_us = next_end < math.huge and math.max(next_end - now, 0) or nil,
  opens_in_us = opens_in,
  stepped_us = stepped,
})
