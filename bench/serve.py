#!/usr/bin/env python3
"""Load test of folio serve on the local machine: many clients, slow clients, and clients that disconnect.

    cargo build --release
    apt-get install wrk
    python3 bench/serve.py --folio target/release/folio

Trains a small model, serves it on a free port of 127.0.0.1, and prints a Markdown table of the results of wrk and /proc:

- 200 clients for --seconds, each requesting one completion after another: responses, errors, latency, memory;
- 200 clients that disconnect during a stream;
- 50 clients that request a stream and never read it.

Exits with 1 if a response is neither 200 nor 429, or if sequences, connections, file descriptors or memory leak. Needs only
Python's standard library and wrk.
"""
import argparse, json, os, pathlib, re, signal, socket, subprocess, sys, tempfile, time, urllib.request

SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '%s'
local threads = {}
function setup(thread) table.insert(threads, thread) end
function init(args) ok, busy, other, tokens = 0, 0, 0, 0 end
function response(status, headers, body)
    if status == 200 then ok = ok + 1 elseif status == 429 then busy = busy + 1 else other = other + 1 end
end
function done(summary, latency, requests)
    local sums = {ok = 0, busy = 0, other = 0}
    for _, thread in ipairs(threads) do
        for name in pairs(sums) do sums[name] = sums[name] + thread:get(name) end
    end
    local errors = summary.errors
    io.write(string.format('JSON {"ok": %%d, "busy": %%d, "other": %%d, "socket_errors": %%d, "seconds": %%f, ' ..
        '"p50_ms": %%f, "p90_ms": %%f, "p99_ms": %%f, "max_ms": %%f}\\n', sums.ok, sums.busy, sums.other,
        errors.connect + errors.read + errors.write + errors.timeout, summary.duration / 1e6,
        latency:percentile(50) / 1e3, latency:percentile(90) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
"""


class Server:
    def __init__(self, folio, runs, options):
        command = [folio, "serve", runs, "--port", "0", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        self.port = int(re.search(r":(\d+)/", line).group(1))

    def memory_mib(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) / 1024

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def metric(self, name):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as response:
            text = response.read().decode()
        found = re.search(rf"^folio_{name} (\S+)$", text, re.M)
        return float(found.group(1)) if found else 0.0

    def request(self, body, window=None):
        body = json.dumps(body).encode()
        stream = socket.socket()
        if window:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        stream.connect(("127.0.0.1", self.port))
        stream.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                       b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        return stream

    def until(self, what, seconds):
        """Waits up to `seconds` until `what()` is true; returns whether it is."""
        deadline = time.monotonic() + seconds
        while not what() and time.monotonic() < deadline:
            time.sleep(0.05)
        return what()

    def is_empty(self):
        # The request for the metrics is itself a connection.
        return self.metric("streams_active") == 0 and self.metric("connections") == 1

    def state(self):
        return f"{self.memory_mib():.0f} MiB, {self.descriptors()} descriptors"

    def end(self):
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(30)


def wrk(server, args, body):
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(SCRIPT % json.dumps(body))
        script.flush()
        command = ["wrk", "-t2", f"-c{args.clients}", f"-d{args.seconds}s", "--timeout", "30s", "-s", script.name,
                   f"http://127.0.0.1:{server.port}/v1/completions"]
        running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        memory = []
        while running.poll() is None:
            time.sleep(0.5)
            memory.append(server.memory_mib())
        out = running.stdout.read()
    return json.loads(re.search(r"JSON (.*)", out).group(1)), memory


def main():
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    parser.add_argument("--folio", default="target/release/folio")
    parser.add_argument("--seconds", type=int, default=30)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=64)
    args = parser.parse_args()
    failures = []
    with tempfile.TemporaryDirectory() as directory:
        runs = f"{directory}/tiny"
        subprocess.run([args.folio, "train", "--preset", "quick", "--n_emb", "64", "--n_heads", "4", "--n_blocks", "2",
                        "--max_steps", "200", "--num_epochs", "1", "--save_checkpoint", "--run_dir", runs],
                       check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        body = {"model": "tiny", "prompt": "ROMEO:", "max_tokens": args.tokens}
        rows = []

        def run(title, options):
            server = Server(args.folio, runs, options)
            with server.request({**body, "max_tokens": 1}) as first:
                first.recv(1)
            before = server.memory_mib()
            descriptors = server.descriptors()
            for _ in range(2):
                result, memory = wrk(server, args, body)
                sampled = server.metric("generated_tokens_total")
                server.until(server.is_empty, 10)
                rows.append((title, result, before, max(memory), server.memory_mib()))
                if result["other"] or result["socket_errors"]:
                    failures.append(f"{title}: {result}")
            print(f"{title}: {sampled / 2 / args.seconds:,.0f} tokens/s", file=sys.stderr)
            if rows[-1][4] > rows[-2][4] * 1.1 + 5:
                failures.append(f"{title}: memory grew from {rows[-2][4]:.0f} to {rows[-1][4]:.0f} MiB")
            if server.descriptors() > descriptors:
                failures.append(f"{title}: file descriptors grew from {descriptors} to {server.descriptors()}")
            return server

        run("queue of 64", []).end()
        server = run("queue of 256", ["--max_queue", "256", "--max_tokens", "16000"])

        print("| server | clients | 200 | 429 | other | responses/s | p50 ms | p90 ms | p99 ms | max ms | MiB before, during, "
              "after |\n|---|---|---|---|---|---|---|---|---|---|---|")
        for title, result, before, during, after in rows:
            print(f"| {title} | {args.clients} | {result['ok']:,} | {result['busy']:,} | "
                  f"{result['other'] + result['socket_errors']} | {result['ok'] / result['seconds']:,.0f} | "
                  f"{result['p50_ms']:.1f} | {result['p90_ms']:.1f} | {result['p99_ms']:.1f} | {result['max_ms']:.0f} | "
                  f"{before:.0f}, {during:.0f}, {after:.0f} |")

        endless = {**body, "max_tokens": 16000, "stream": True}
        before = server.state()
        for _ in range(4):
            streams = [server.request(endless) for _ in range(50)]
            for stream in streams[:16]:
                stream.recv(200)
            at_most = server.metric("streams_active")
            for stream in streams:
                stream.close()
        gone = server.until(server.is_empty, 10)
        print(f"\n200 clients disconnect during a stream ({at_most:.0f} sequences in parallel): {before} before, "
              f"{server.state()} after; sequences and connections left: {'none' if gone else 'SOME'}")
        # Large events, so that the operating system cannot buffer the whole stream.
        unread = [server.request({**endless, "logprobs": 20}, 4096) for _ in range(50)]
        paused = server.until(lambda: server.metric("streams_paused") > 10, 20)
        served = server.request(body)
        served.settimeout(30)
        answered = served.recv(12) == b"HTTP/1.1 200"
        served.close()
        during = server.state()
        freed = server.until(server.is_empty, 90)
        for stream in unread:
            stream.close()
        print(f"50 clients that never read: {during} meanwhile, another client is {'served' if answered else 'NOT served'}; "
              f"{server.state()} after; sequences and connections left: {'none' if freed else 'SOME'}")
        for what, holds in [("sequences of disconnected clients were not cancelled", gone), ("no sequence was paused for a client that does not read", paused),
                            ("another client was not served", answered), ("sequences that nobody reads were not cancelled", freed)]:
            if not holds:
                failures.append(what)
        code = server.end()
        if code != 130:
            failures.append(f"exit code {code}")
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
