-- An objective as JSON, and how strict it is. The time left until a deadline becomes a point in time; a nearer one is
-- stricter.
local function stated(kind, value_ms, strictness, is_deadline)
  strictness = tonumber(strictness)
  local objective = '{"kind":"' .. kind .. '"'
  if tonumber(value_ms) > 0 then objective = objective .. ',"value_ms":' .. value_ms end
  if is_deadline == '1' then
    local at = now + tonumber(value_ms)
    objective = objective .. ',"at_ms":' .. string.format('%.0f', at)
    strictness = 5e13 + 1e13 - 1 - at
  end
  return objective .. '}', string.format('%.0f', strictness)
end

