// The service as one would write it in Go with net/http: the same JSON, header fields and log line, for
// the comparison in docs/benchmarks.md. It has no page, probe, drain or configuration.
package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"
)

type service struct {
	Name        string `json:"name"`
	Version     string `json:"version"`
	Description string `json:"description"`
	Framework   string `json:"framework"`
}

type system struct {
	Hostname        string `json:"hostname"`
	Platform        string `json:"platform"`
	PlatformVersion string `json:"platform_version"`
	Architecture    string `json:"architecture"`
	CPUCount        int    `json:"cpu_count"`
	GoVersion       string `json:"go_version"`
}

type uptime struct {
	UptimeSeconds int    `json:"uptime_seconds"`
	UptimeHuman   string `json:"uptime_human"`
	CurrentTime   string `json:"current_time"`
	Timezone      string `json:"timezone"`
}

type request struct {
	ClientIP  string `json:"client_ip"`
	UserAgent string `json:"user_agent"`
	Method    string `json:"method"`
	Path      string `json:"path"`
}

type endpoint struct {
	Path        string `json:"path"`
	Method      string `json:"method"`
	Description string `json:"description"`
}

type information struct {
	Service   service    `json:"service"`
	System    system     `json:"system"`
	Runtime   uptime     `json:"runtime"`
	Request   request    `json:"request"`
	Endpoints []endpoint `json:"endpoints"`
}

type health struct {
	Status        string `json:"status"`
	Timestamp     string `json:"timestamp"`
	UptimeSeconds int    `json:"uptime_seconds"`
}

type line struct {
	Time       string  `json:"time"`
	Level      string  `json:"level"`
	Msg        string  `json:"msg"`
	Method     string  `json:"method"`
	Path       string  `json:"path"`
	Status     int     `json:"status"`
	DurationMs float64 `json:"duration_ms"`
	ClientIP   string  `json:"client_ip"`
	UserAgent  string  `json:"user_agent"`
}

const rfc3339 = "2006-01-02T15:04:05.000Z"

var (
	started = time.Now()
	host    = readSystem()
	about   = service{"devops-info-service", "1.0.0", "DevOps course info service", "net/http"}
	routes  = []endpoint{{"/", "GET", "Service information"}, {"/health", "GET", "Health check"}}
)

func readSystem() system {
	hostname, _ := os.Hostname()
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return system{hostname, "Linux", strings.TrimSpace(string(release)), runtime.GOARCH, runtime.NumCPU(), runtime.Version()}
}

func count(n int, unit string) string {
	if n == 1 {
		return "1 " + unit
	}
	return strconv.Itoa(n) + " " + unit + "s"
}

func now() string { return time.Now().UTC().Format(rfc3339) }

func answer(w http.ResponseWriter, body any) {
	header := w.Header()
	header.Set("Content-Type", "application/json")
	header.Set("Cache-Control", "no-store")
	header.Set("X-Content-Type-Options", "nosniff")
	json.NewEncoder(w).Encode(body)
}

func main() {
	http.HandleFunc("/health", func(w http.ResponseWriter, r *http.Request) {
		answer(w, health{"healthy", now(), int(time.Since(started).Seconds())})
	})
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		client, _, _ := net.SplitHostPort(r.RemoteAddr)
		agent := r.UserAgent()
		if agent == "" {
			agent = "unknown"
		}
		seconds := int(time.Since(started).Seconds())
		human := count(seconds/3600, "hour") + ", " + count(seconds/60%60, "minute")
		w.Header().Set("Vary", "accept")
		answer(w, information{
			about, host, uptime{seconds, human, now(), "UTC"}, request{client, agent, r.Method, r.URL.Path}, routes,
		})
		elapsed := float64(time.Since(start).Microseconds()) / 1000
		json.NewEncoder(os.Stdout).Encode(line{now(), "info", "request", r.Method, r.URL.Path, 200, elapsed, client, agent})
	})
	if err := http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), nil); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
