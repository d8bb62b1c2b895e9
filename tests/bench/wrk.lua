-- wrk -t1 -c64 -d5s -s tests/bench/wrk.lua http://127.0.0.1:8081/predict -- BODIES RATE
--
-- BODIES: a file with one JSON body a line; they are sent in turn. RATE: requests a second of an open loop, 0 for a
-- closed one. In the open loop each request has its place on a clock, and goes out then if a connection is free, else as
-- soon as one is. Prints one JSON object. One thread only (-t1).

local ffi = require("ffi")
ffi.cdef [[
typedef struct { long s; long ns; } bench_time;
int clock_gettime(int clock, bench_time *now);
]]
local time, MONOTONIC = ffi.new("bench_time"), 1
local requests, last, first_at, asked = {}, 0, nil, 0
local rate = 0
counts, sent = {}, 0

local function now()
    ffi.C.clock_gettime(MONOTONIC, time)
    return tonumber(time.s) + tonumber(time.ns) * 1e-9
end

local threads = {}
function setup(thread)
    table.insert(threads, thread)
end

function init(args)
    for line in io.lines(args[1]) do
        table.insert(requests, wrk.format("POST", nil, { ["Content-Type"] = "application/json" }, line))
    end
    rate = tonumber(args[2])
    if rate == 0 then
        delay = nil
    end
end

function delay()
    first_at = first_at or now()
    asked = asked + 1
    return math.max(0, (first_at + asked / rate - now()) * 1000)
end

function request()
    last, sent = last % #requests + 1, sent + 1
    return requests[last]
end

function response(status)
    counts[status] = (counts[status] or 0) + 1
end

function done(summary, latency)
    local held, parts = threads[1]:get("counts"), {}
    for status, count in pairs(held) do
        table.insert(parts, string.format('"%d": %d', status, count))
    end
    local errors = summary.errors
    print(string.format(
        '{"seconds": %.6f, "sent": %d, "broken": %d, "p50_ms": %.3f, "p99_ms": %.3f, "statuses": {%s}}',
        summary.duration / 1e6, threads[1]:get("sent"), errors.connect + errors.read + errors.write,
        latency:percentile(50) / 1000, latency:percentile(99) / 1000, table.concat(parts, ", ")))
end
