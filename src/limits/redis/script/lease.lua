-- Leases: permits held by a client outside the replicas, until the lease is released or expires.
--
-- leases       id -> the lease, in JSON
-- lease_ends   id -> when it expires
-- lease_keys   'generation key' -> id of the lease granted for this idempotency key
-- last_token   the last fencing token

local function lease_of(id)
  local lease = redis.call('HGET', key('leases'), id)
  return lease and cjson.decode(lease)
end

local function end_lease(id)
  local lease = lease_of(id)
  redis.call('HDEL', key('leases'), id)
  redis.call('ZREM', key('lease_ends'), id)
  if not lease then
    return
  end
  if lease.key then
    redis.call('HDEL', key('lease_keys'), lease.semaphore .. ' ' .. lease.key)
  end
  if redis.call('HINCRBY', key('leased'), lease.semaphore, -lease.permits) <= 0 then
    redis.call('HDEL', key('leased'), lease.semaphore)
  end
  touch(lease.semaphore)
end

local function expire_leases()
  for _, id in ipairs(
    redis.call('ZRANGEBYSCORE', key('lease_ends'), '-inf', whole(now), 'LIMIT', 0, MAX_REMOVED)
  ) do
    end_lease(id)
  end
end

local function next_lease_expiry()
  local first = redis.call('ZRANGE', key('lease_ends'), 0, 0, 'WITHSCORES')
  return tonumber(first[2]) or math.huge
end

local function with_time_left(id, lease)
  lease.id = id
  lease.ends_in_us = redis.call('ZSCORE', key('lease_ends'), id) - now
  return lease
end

local function set_expiry(id, lease)
  redis.call('ZADD', key('lease_ends'), whole(now + lease.ttl_us), id)
end

-- Returns the lease that was granted for a key. It counts as found from now on.
function operations.find_lease(op)
  local id = redis.call('HGET', key('lease_keys'), op.semaphore .. ' ' .. op.key)
  local lease = id and lease_of(id)
  if lease then
    if not lease.found then
      lease.found = true
      redis.call('HSET', key('leases'), id, cjson.encode(lease))
    end
    return {lease = with_time_left(id, lease), new = false}
  end
end

-- Turns permits that the member holds into a lease. If the key has a lease by now, gives the permits
-- back and returns that lease.
function operations.lease(op)
  hold(op.semaphore, member, -op.permits)
  touch(op.semaphore)
  local existing = op.key and operations.find_lease(op)
  if existing then
    return existing
  end
  if not limit_of(op.semaphore) then
    return nil
  end
  local token = math.max(now, tonumber(redis.call('GET', key('last_token')) or 0) + 1)
  redis.call('SET', key('last_token'), whole(token))
  local lease = {
    semaphore = op.semaphore, name = op.name, holder = op.holder, permits = op.permits,
    asked_ttl_us = op.ttl_us, ttl_us = op.ttl_us, key = op.key, fencing_token = whole(token),
  }
  redis.call('HSET', key('leases'), op.id, cjson.encode(lease))
  set_expiry(op.id, lease)
  redis.call('HINCRBY', key('leased'), op.semaphore, op.permits)
  if op.key then
    redis.call('HSET', key('lease_keys'), op.semaphore .. ' ' .. op.key, op.id)
  end
  return {lease = with_time_left(op.id, lease), new = true}
end

function operations.renew_lease(op)
  local lease = lease_of(op.id)
  if not lease or lease.name ~= op.name then
    return nil
  end
  lease.ttl_us = op.ttl_us or lease.ttl_us
  redis.call('HSET', key('leases'), op.id, cjson.encode(lease))
  set_expiry(op.id, lease)
  return {lease = with_time_left(op.id, lease), new = false}
end

-- Ends a lease. With `unless_found`, only if no request has found it by its key.
function operations.release_lease(op)
  local lease = lease_of(op.id)
  if lease and lease.name ~= op.name then
    return {of_another = true}
  end
  if not (op.unless_found and lease and lease.found) then
    end_lease(op.id)
  end
  return {of_another = false}
end

function operations.list_leases(op)
  local all, list = redis.call('HGETALL', key('leases')), {}
  for i = 1, #all, 2 do
    local lease = cjson.decode(all[i + 1])
    if lease.semaphore == op.semaphore then
      table.insert(list, with_time_left(all[i], lease))
    end
  end
  return {leases = list}
end
