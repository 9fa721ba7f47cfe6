/** The proof of what `operations.md` says of proxies in front of the service. */
import { assert, assertEquals, assertGreater, assertStringIncludes } from "@std/assert";
import {
  bindTest,
  findFreePort,
  FORMS,
  lacks,
  launch,
  makeProcessForm,
  makeTempPath,
  readText,
  type RunningService,
  start,
  test,
  waitUntil,
} from "../.ci/harness.ts";

interface Proxy {
  readonly program: string;
  /** Its configuration, for a proxy on 8080 and a service on 5000. */
  readonly configuration: string;
  /** What it needs besides to run as a test. */
  command(file: string): string[];
}

const PROXIES: Proxy[] = [
  {
    program: "haproxy",
    configuration: `
defaults
  mode http
  timeout connect 1s
  timeout client 30s
  timeout server 30s
  timeout http-request 10s
frontend http
  bind 127.0.0.1:8080
  default_backend web
backend web
  mode http
  option httpchk GET /health
  option forwardfor
  server web1 127.0.0.1:5000 check inter 1s fall 2
`,
    command: (file) => ["haproxy", "-db", "-f", file],
  },
  {
    program: "nginx",
    configuration: `
events {}
http {
  access_log off;
  client_body_temp_path TEMP;
  proxy_temp_path TEMP;
  fastcgi_temp_path TEMP;
  uwsgi_temp_path TEMP;
  scgi_temp_path TEMP;
  client_header_timeout 10s;
  upstream web {
    server 127.0.0.1:5000;
  }
  server {
    listen 127.0.0.1:8080;
    location / {
      proxy_pass http://web;
      proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    }
  }
}
`,
    command: (file) => [
      ...["nginx", "-e", "stderr", "-c", file],
      ...["-g", `daemon off; error_log stderr; pid ${file}.pid;`],
    ],
  },
  {
    program: "caddy",
    configuration: `
{
  admin off
}
http://:8080 {
  bind 127.0.0.1
  reverse_proxy 127.0.0.1:5000 {
    health_uri /health
    health_interval 1s
  }
}
`,
    command: (file) => ["caddy", "run", "--adapter", "caddyfile", "--config", file],
  },
];

/** Starts a proxy in front of a service, and gives its port. */
async function startProxy({ program, configuration, command }: Proxy, service: RunningService) {
  const port = findFreePort();
  const file = makeTempPath(`${program}.conf`);
  const text = configuration.replace(":8080", `:${port}`).replace(":5000", `:${service.port}`)
    .replaceAll("TEMP", `${file}.d`); // nginx's own is root's
  Deno.writeTextFileSync(file, text);
  const run = await launch(makeProcessForm(program, () => command(file)), {
    XDG_CONFIG_HOME: file,
    XDG_DATA_HOME: file,
  });
  const isUp = async () => {
    const response = await fetch(`http://127.0.0.1:${port}/health`).catch(() => undefined);
    await response?.body?.cancel();
    return response?.status;
  };
  try {
    await waitUntil(`${program} to answer`, isUp, (status) => status === 200);
  } catch (error) {
    await run[Symbol.asyncDispose]();
    throw error;
  }
  return Object.assign(run, { port });
}

for (const form of FORMS) {
  for (const proxy of PROXIES) {
    bindTest(form)(
      `behind ${proxy.program} client_ip is the client's, whatever a client forges`,
      async () => {
        await using service = await start(form, { TRUST_PROXY: "1" });
        await using front = await startProxy(proxy, service);
        // not the proxy's own address
        using client = Deno.createHttpClient({ localAddress: "127.0.0.2" });
        for (
          const forged of [{}, { "x-forwarded-for": "203.0.113.7" }, {
            "x-forwarded-for": "a, 203.0.113.7, b",
          }]
        ) {
          const response = await fetch(`http://127.0.0.1:${front.port}/`, {
            client,
            headers: forged,
          });
          const { request } = await response.json();
          assertEquals(request.client_ip, "127.0.0.2", JSON.stringify(forged));
        }
      },
      lacks(proxy.program),
      Deno.build.os !== "linux" && "needs a second loopback address",
    );
  }
}

test("the proxies are configured as operations.md says", () => {
  const section = readText("docs/operations.md").split(/^## /m).find((text) =>
    text.startsWith("Behind a proxy")
  )!;
  const [, block = ""] = /```haproxy\n(.*?)```/s.exec(section)!;
  const [haproxy] = PROXIES;
  for (const line of block.trim().split("\n")) assertStringIncludes(haproxy!.configuration, line);
  const directives = Array.from(
    section.matchAll(/`((?:option|proxy_set_header|timeout|client_header_timeout) [^`]*)`/g),
    ([, directive]) => directive!,
  );
  assertGreater(directives.length, 3);
  for (const directive of directives) {
    assert(PROXIES.some(({ configuration }) => configuration.includes(directive)), directive);
  }
});
