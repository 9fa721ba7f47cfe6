# varnishd -F -n "$(mktemp -u)" -a 127.0.0.1:8080 -f "$PWD/docs/proxies/default.vcl"
# The instances need DRAIN_SECONDS=3: interval × (bad probes + 1).
vcl 4.1;

import directors;

probe health {
  .url = "/health";
  .interval = 1s;
  .window = 3;
  .threshold = 2; # of 3 good ones, so two bad ones are noticed; by default it takes six
}

backend web1 { .host = "127.0.0.1"; .port = "5001"; .probe = health; }
backend web2 { .host = "127.0.0.1"; .port = "5002"; .probe = health; }

sub vcl_init {
  new web = directors.round_robin();
  web.add_backend(web1);
  web.add_backend(web2);
}

sub vcl_recv {
  set req.backend_hint = web.backend();
  return (pass); # nothing is to be cached
}

sub vcl_backend_fetch {
  unset bereq.body; # a slow one never reaches the service, which takes none
}
