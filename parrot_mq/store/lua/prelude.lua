-- What every script begins with. KEYS[1] is the partition's epoch key, "<prefix>epoch"; no other slot is touched.
-- The constants above (LEASE_MS, UNITS, ...) are the deployment's StoreSettings.
local prefix = string.sub(KEYS[1], 1, -6)
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local now_us = clock[1] * 1000000 + clock[2]
local now_ms = string.format('%d', now)  -- Redis formats a number anew for every command that gets one

local function sess_key(id) return prefix .. 'sess:' .. id end
local function var_key(id) return prefix .. 'var:' .. id end
local function req_key(id) return prefix .. 'req:' .. id end
local function eng_key(id) return prefix .. 'eng:' .. id end
local function val_key(vid, fence) return prefix .. 'val:' .. vid .. ':' .. fence end

local function err(kind, culprit, message, retry_after_ms)
  return {'error', kind, culprit, message, tostring(retry_after_ms or 1000)}
end

-- A full Redis (maxmemory) refuses a script whose first write takes memory, and lets everything pass after a first write
-- that takes none. Scripts that carry on or end what was admitted begin with such a write: were they refused, leases
-- and heartbeats would run out and the work would be lost, and nothing could ever be deleted.
local function even_when_full() redis.call('DEL', prefix .. 'none') end

local function hint(...)
  redis.call('XADD', prefix .. 'intake', '*', 'kind', ...)
end

local function event(kind, id, ...)
  redis.call('XADD', prefix .. 'events', 'MAXLEN', '~', EVENTS_MAX, '*', 'event', kind, 'id', id, ...)
end

local function words(text)
  local list = {}
  for word in string.gmatch(text or '', '%S+') do list[#list + 1] = word end
  return list
end

local function joined(list) return table.concat(list, ' ') end

-- A command on a key with any number of arguments.
local function in_parts(command, key, list)
  for i = 1, #list, 500 do redis.call(command, key, unpack(list, i, math.min(i + 499, #list))) end
end

-- A message for an engine, and an empty entry in its queue that wakes the blocking read.
local function control(engine, kind, request, fence, text)
  if redis.call('EXISTS', eng_key(engine) .. ':q') == 0 then return end
  redis.call('XADD', eng_key(engine) .. ':c', 'MAXLEN', '~', 10000, '*',
    'kind', kind, 'request', request, 'fence', fence or '', 'text', text or '')
  redis.call('XADD', eng_key(engine) .. ':q', '*', 'control', kind)
end

local function is_stale_epoch(epoch)
  return tonumber(redis.call('GET', KEYS[1]) or 0) > tonumber(epoch)
end

local function fenced_epoch(epoch)
  return err('Fenced', epoch, 'epoch ' .. epoch .. ' is over: another scheduler leads')
end

