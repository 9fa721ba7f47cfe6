// What the runtime can do at best: a bare Deno.serve with a static answer of BODY bytes.
const body = "x".repeat(Number(Deno.env.get("BODY")) - 1) + "\n";
const headers = {
  "content-type": "application/json",
  "cache-control": "no-store",
  "x-content-type-options": "nosniff",
};
Deno.serve(
  { hostname: "127.0.0.1", port: Number(Deno.env.get("PORT")), onListen() {} },
  () => new Response(body, { headers }),
);
