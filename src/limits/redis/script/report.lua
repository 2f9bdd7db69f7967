-- What members report about themselves, and the past of all together. The script passes both on unread.
--
-- reports        member -> its last report
-- past:<window>  the points of a window, oldest first

-- How much is kept of each.
local MAX_REPORT = 65536
local MAX_REPORTS = 64
local MAX_POINT = 16384
local MAX_POINTS = {hour = 360, day = 1440}

-- For how many seconds it is kept after the last report: a day.
local REPORT_KEPT = 86400

-- Keeps the member's report and adds points to the past. Returns the reports of all members, and whether
-- this member is the first of all, by name: it alone adds points.
function operations.report(op)
  if #op.report <= MAX_REPORT then
    redis.call('HSET', key('reports'), member, op.report)
    redis.call('EXPIRE', key('reports'), REPORT_KEPT)
  end
  for window, point in pairs(op.points or {}) do
    if MAX_POINTS[window] and #point <= MAX_POINT then
      redis.call('RPUSH', key('past', window), point)
      redis.call('LTRIM', key('past', window), -MAX_POINTS[window], -1)
      redis.call('EXPIRE', key('past', window), REPORT_KEPT)
    end
  end
  local list, first = {}, member
  for _, name in ipairs(redis.call('HKEYS', key('reports'))) do
    if is_alive(name) then
      if name < first then
        first = name
      end
      if #list < MAX_REPORTS then
        table.insert(list, redis.call('HGET', key('reports'), name))
      end
    else
      redis.call('HDEL', key('reports'), name)
    end
  end
  return {reports = list, first = first == member}
end

-- Returns a part of the past.
function operations.read_past(op)
  return {points = redis.call('LRANGE', key('past', op.window), op.from, op.to)}
end
