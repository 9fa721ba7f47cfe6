/** The proof of this folder: where std comes from, that both ways agree, and what compiles. */
import { assert, assertEquals, assertLess, assertMatch, assertRejects } from "@std/assert";
import { once } from "node:events";
import http from "node:http";
import https from "node:https";
import { lacks, makeTempPath, readOutput, readText, runProgram } from "../.test/programs.ts";
import { findFreePort } from "../.test/requests.ts";
import { spec } from "../.test/run.ts";
import project from "../deno.json" with { type: "json" };
import importMap from "./import_map.json" with { type: "json" };

/** A copy of the project, below a folder that looks like a project of npm. */
async function copyProject(option = "-R"): Promise<string> {
  const parent = makeTempPath("parent");
  await Deno.mkdir(`${parent}/project/tmp`, { recursive: true });
  await Deno.writeTextFile(`${parent}/package.json`, `{"dependencies":{"left-pad":"1.3.0"}}`);
  const files = ["main.ts", "deno.json", "deno.lock", ".deno-std"];
  await readOutput(["cp", option, ...files, `${parent}/project`]);
  return `${parent}/project`;
}

function runTask(folder: string, task: string, env: Record<string, string>) {
  const command = ["sh", "-c", `cd "$0" && exec "$1" task -q ${task}`, folder, Deno.execPath()];
  return runProgram(command, { env });
}

const OPENSSL = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=jsr.io " +
  "-addext subjectAltName=DNS:jsr.io -addext basicConstraints=CA:FALSE -keyout -";

/** A proxy to a server that says it is JSR and answers with a status; with 0 it is silent. */
async function startProxy(port: number, status: number, pem: string) {
  const identity = { key: pem, cert: pem };
  const jsr = https.createServer(identity, (_, answer) => answer.writeHead(status).end());
  const proxy = http.createServer().on("connect", (_, socket) => {
    if (status > 0 && socket.write("HTTP/1.1 200 OK\r\n\r\n")) jsr.emit("connection", socket);
  });
  await once(proxy.listen(port), "listening");
  return { [Symbol.dispose]: () => void proxy.close() };
}

Deno.test(spec("std comes from npm where JSR is neither cached nor reachable", async (context) => {
  const makeCertificate = async () => {
    const [pem, file] = [await readOutput(OPENSSL.split(" ")), makeTempPath("certificate")];
    await Deno.writeTextFile(file, pem);
    return { pem, file };
  };
  const [{ pem, file: DENO_CERT }, { file: other }] = [
    await makeCertificate(),
    await makeCertificate(),
  ];
  const cached = await copyProject(); // here http needs no network, as if it were cached
  const data = "data:text/javascript,";
  const imports = { "@std/http/negotiation": data, "@std/http/status": data, ...project.imports };
  await Deno.writeTextFile(`${cached}/deno.json`, JSON.stringify({ ...project, imports }));
  const telemetry = { OTEL_DENO: "true", OTEL_DENO_CONSOLE: "replace" };
  const ask = async (status: number, env = {}, folder = ".", task = "std") => {
    const port = findFreePort();
    using _proxy = status < 0 ? undefined : await startProxy(port, status, pem);
    const [DENO_DIR, HTTPS_PROXY] = [makeTempPath("cache"), `http://127.0.0.1:${port}`];
    const begun = performance.now();
    const outcome = await runTask(folder, task, { DENO_DIR, HTTPS_PROXY, DENO_CERT, ...env });
    return { ...outcome, seconds: (performance.now() - begun) / 1000 };
  };
  const none = -1;
  const outcomes = {
    "npm: no network": ask(none),
    "npm: no network, and telemetry takes the console": ask(none, telemetry),
    "JSR: no network, but http is cached": ask(none, {}, cached),
    "npm: no network, and assert is not cached": ask(none, {}, cached, "std @std/assert"),
    "npm: a network that drops packets": ask(0),
    "npm: JSR is out of order": ask(503),
    "npm: a certificate that is not trusted": ask(200, { DENO_CERT: other }),
    "JSR: it answers": ask(200),
  };
  await Promise.all(Object.values(outcomes));
  for (const [name, outcome] of Object.entries(outcomes)) {
    await context.step(name, async () => {
      const { code, stdout, stderr, seconds } = await outcome;
      assertEquals([code, stderr === ""], [0, name.startsWith("JSR")], stderr);
      assertMatch(stdout, stderr ? /^--lock=\S+ --import-map=\S+\n$/ : /^$/);
      if (name.includes("certificate")) assertMatch(stderr, /certificate/);
      assertLess(seconds, 30);
    });
  }
}, { unless: lacks("openssl") }));

Deno.test("JSR and npm: a lock of each for what is imported, one version of deno-std", async () => {
  const [jsr, npm] = ["deno.lock", ".deno-std/deno.lock"].map((file) => JSON.parse(readText(file)));
  const ranges = Object.values(project.imports).toSorted();
  for (const lock of [jsr, npm]) assertEquals(lock.workspace.dependencies.toSorted(), ranges);
  for (const range of ranges) assertEquals(jsr.specifiers[range], range.split("^")[1]);
  const packages = Object.values(importMap.imports).map((url) => url.split("/")[1]!);
  assertEquals(Object.keys(npm.npm), [...new Set(packages)]);
  const findImports = async (...where: string[]) =>
    new Set((await readOutput(["grep", "-rhoE", '"@std/[a-z/]+"', ...where])).split("\n"));
  const service = await findImports("main.ts");
  assertEquals(await findImports(".deno-std/modules.ts"), service);
  const used = service.union(await findImports("--include=*_test.ts", "."));
  assertEquals(new Set(Object.keys(importMap.imports).map((name) => `"${name}"`)), used);
});

Deno.test("compile.ts makes equal bytes from two clones, or fails; it leaves no file", async () => {
  const compile = async (copyOption: string, ...options: string[]) => {
    const folder = await copyProject(copyOption);
    // any program will do; telemetry would make bytes of its own
    const env = { TMPDIR: `${folder}/tmp`, DENORT_BIN: "/bin/true", OTEL_DENO: "false" };
    const { code, stderr } = await runTask(folder, `compile ${options.join(" ")}`, env);
    assertEquals([...Deno.readDirSync(env.TMPDIR)], [], "it is left behind");
    if (code !== 0) throw new Error(stderr);
    return (await Deno.readFile(`${folder}/dist/devops-info-service`)).toBase64();
  };
  const [one, two] = await Promise.all([compile("-R"), compile("-Rp")]);
  assert(one === two, "the file times or the folder are in it");
  const permissions = JSON.parse(/"permissions":(\{.*?\})/.exec(atob(one))![1]!);
  const granted = Object.entries(permissions).filter(([, names]) => names).toSorted();
  const rights = Object.entries(project.permissions.default);
  assertEquals(granted, rights.map(([name, names]) => [`allow_${name}`, names]).toSorted());
  assert(atob(one).includes('"log_level":"ERROR"'), "--quiet keeps Deno from blocking on stderr");
  await assertRejects(() => compile("-R", "--nonsense"), Error, "--nonsense");
});
