-- What wrk sends. With a number above 0 as argument, it looks at every answer and ends after so many.
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
wrk.body = '{"model": "bench", "prompt": "' .. string.rep("a word ", 32) .. '", "max_tokens": 16, "temperature": 0}'

local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function init(args)
  most = tonumber(args[1] or "0")
  answers, failures, mixed, stable, candidate = 0, 0, 0, 0, 0
  if most > 0 then
    response = look
  end
end

-- The version that the answer names must be the one that the backend was asked for.
function look(status, headers, body)
  answers = answers + 1
  local named = headers["x-graftwork-adapter"]
  if status ~= 200 then
    failures = failures + 1
  elseif named == nil or string.find(body, '"asked": "' .. named .. '"', 1, true) == nil then
    mixed = mixed + 1
  elseif named == "bench@v1" then
    stable = stable + 1
  else
    candidate = candidate + 1
  end
  if answers >= most then
    wrk.thread:stop()
  end
end

function done(summary, latency, requests)
  local sum = { answers = 0, failures = 0, mixed = 0, stable = 0, candidate = 0 }
  for _, thread in ipairs(threads) do
    for name in pairs(sum) do
      sum[name] = sum[name] + (thread:get(name) or 0)
    end
  end
  local errors = summary.errors
  print(string.format(
    'FOUND {"requests": %d, "seconds": %f, "p50_us": %f, "p99_us": %f, "errors": %d, "answers": %d, "failures": %d, ' ..
    '"mixed": %d, "stable": %d, "candidate": %d}',
    summary.requests, summary.duration / 1e6, latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    sum.answers, sum.failures, sum.mixed, sum.stable, sum.candidate))
end
