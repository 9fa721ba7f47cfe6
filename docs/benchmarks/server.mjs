// The service as one would write it for Node with node:http: same JSON, same log line, for the comparison
// in docs/benchmarks.md. It has no probe, drain or configuration.
import { createServer } from "node:http";
import os from "node:os";
import process from "node:process";

const service = {
  name: "devops-info-service",
  version: "1.0.0",
  description: "DevOps course info service",
  framework: "node:http",
};
const system = {
  hostname: os.hostname(),
  platform: os.type(),
  platform_version: os.release(),
  architecture: os.machine(),
  cpu_count: os.cpus().length,
  node_version: process.versions.node,
};
const endpoints = [
  { path: "/", method: "GET", description: "Service information" },
  { path: "/health", method: "GET", description: "Health check" },
];
const headers = {
  "content-type": "application/json",
  "cache-control": "no-store",
  "x-content-type-options": "nosniff",
};

function answer(response, body) {
  const text = JSON.stringify(body) + "\n";
  response.writeHead(200, { ...headers, "content-length": text.length });
  response.end(text);
}

createServer((request, response) => {
  const start = performance.now();
  const uptime_seconds = Math.floor(process.uptime());
  const time = new Date().toISOString();
  if (request.url === "/health") {
    return answer(response, { status: "healthy", timestamp: time, uptime_seconds });
  }
  const client_ip = request.socket.remoteAddress;
  const user_agent = request.headers["user-agent"] ?? "unknown";
  const { method, url: path } = request;
  const minutes = Math.floor(uptime_seconds / 60);
  const uptime_human = `${Math.floor(minutes / 60)} hours, ${minutes % 60} minutes`;
  const runtime = { uptime_seconds, uptime_human, current_time: time, timezone: "UTC" };
  answer(response, {
    service,
    system,
    runtime,
    request: { client_ip, user_agent, method, path },
    endpoints,
  });
  const duration_ms = Math.round((performance.now() - start) * 1000) / 1000;
  const line = {
    time,
    level: "info",
    msg: "request",
    method,
    path,
    status: 200,
    duration_ms,
    client_ip,
  };
  process.stdout.write(JSON.stringify({ ...line, user_agent }) + "\n");
}).listen(Number(process.env.PORT), "127.0.0.1");
