package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func sleeper(t *testing.T) *exec.Cmd {
	t.Helper()
	c := exec.Command("sleep", "600")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Process.Kill(); c.Wait() })
	return c
}

func TestAProcessIsAliveUntilItIsKilledEvenAsAZombie(t *testing.T) {
	c := sleeper(t)
	p, ok := identify(c.Process.Pid)
	if !ok || !p.alive() {
		t.Fatal("a running process does not count as alive")
	}
	// Nobody waits for it here, so that it stays a zombie.
	if err := p.kill(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join("/proc", strconv.Itoa(p.Pid))); err != nil {
		t.Fatal("the test wants a zombie: ", err)
	}
	if p.alive() {
		t.Error("a zombie counts as alive")
	}
}

func TestAReusedPidIsAnotherProcess(t *testing.T) {
	p, _ := identify(os.Getpid())
	p.Start += "0"
	if p.alive() {
		t.Error("a process with another start time counts as the recorded one")
	}
	if err := p.kill(time.Second); err != nil {
		t.Error(err)
	}
}

func TestOnlyALiveOwnerCounts(t *testing.T) {
	me, _ := identify(os.Getpid())
	gone := process{Pid: me.Pid, Start: me.Start + "0"}
	cases := []struct {
		name string
		r    record
		live bool
	}{
		{"a demo whose node runs", record{Purpose: purposeDemo, Boot: bootID(), Node: me}, true},
		{"a demo whose processes are gone", record{Purpose: purposeDemo, Boot: bootID(), Node: gone, Keeper: gone}, false},
		{"a demo of before the restart", record{Purpose: purposeDemo, Boot: "another", Node: me}, false},
		{"a test that runs", record{Purpose: purposeTest, Boot: bootID(), Owner: me}, true},
		{"a test that was killed, with a cluster that still runs", record{Purpose: purposeTest, Boot: bootID(), Owner: gone, Node: me}, false},
	}
	for _, c := range cases {
		if c.r.live() != c.live {
			t.Errorf("%s: live is %v", c.name, !c.live)
		}
	}
}

func TestWhoMayReuseARunningCluster(t *testing.T) {
	me, _ := identify(os.Getpid())
	other, _ := identify(1)
	demo := record{Purpose: purposeDemo, Clone: "/a"}
	test := record{Purpose: purposeTest, Clone: "/a", Owner: me}
	cases := []struct {
		name string
		r    record
		q    request
		may  bool
	}{
		{"the demo of the same clone", demo, request{purposeDemo, "/a", process{}}, true},
		{"the demo of another clone", demo, request{purposeDemo, "/b", process{}}, false},
		{"a test while a demo runs", demo, request{purposeTest, "/a", me}, false},
		{"the same test run", test, request{purposeTest, "/a", me}, true},
		{"another test run", test, request{purposeTest, "/a", other}, false},
		{"a demo while a test runs", test, request{purposeDemo, "/a", process{}}, false},
	}
	for _, c := range cases {
		if c.r.mayReuse(c.q) != c.may {
			t.Errorf("%s: may is %v", c.name, !c.may)
		}
	}
	if !strings.Contains(demo.refusal(), "`make demo-down`") {
		t.Errorf("the refusal does not name the way on: %s", demo.refusal())
	}
}

func TestWhatSomebodyElsePutThereStays(t *testing.T) {
	folder := t.TempDir()
	path := func(name string) string { return filepath.Join(folder, name) }
	for _, name := range []string{"empty", "filled", "filled/by-another"} {
		if err := os.Mkdir(path(name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range map[string]string{"free.lock": "", "held.lock": "", "written": "text"} {
		if err := os.WriteFile(path(name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	held, err := os.Open(path("held.lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if err := syscall.Flock(int(held.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	stays := map[string]bool{"empty": false, "filled": true, "free.lock": false, "held.lock": true, "written": true, "never-made": false}
	var absent []string
	for name := range stays {
		absent = append(absent, path(name))
	}
	if err := removeOutside(absent); err != nil {
		t.Fatal(err)
	}
	for name, want := range stays {
		if _, err := os.Stat(path(name)); (err == nil) != want {
			t.Errorf("%s is there: %v, want %v", name, err == nil, want)
		}
	}
}

func TestARouteOfTheMachineToTheClustersAddressesIsRefused(t *testing.T) {
	for _, free := range []route{
		{Dst: "default", Dev: "eth0"}, {Dst: "0.0.0.0/1", Dev: "tun0"}, {Dst: "10.0.0.0/16", Dev: "eth0"}, {Dst: "10.98.0.4/30", Dev: "br0"}, {Dst: "10.99.0.1", Dev: "lo"}, {Dst: "10.0.0.0/8", Dev: "tun0"}, {Dst: "10.96.0.0/12", Dev: ""},
		{Dst: serviceNetwork, Dev: hostLink}, {Dst: podNetwork, Dev: hostLink}, {Dst: nodeAddress, Dev: hostLink},
	} {
		if err := conflict([]route{free}); err != nil {
			t.Errorf("%v: %v", free, err)
		}
	}
	for _, used := range []struct {
		route route
		says  []string
	}{
		{route{Dst: "10.96.0.0/16", Dev: "tun0"}, []string{"10.96.0.0/16 dev tun0", "10.96.0.0/16 for services"}},
		{route{Dst: "10.97.3.0/24", Dev: "docker1"}, []string{"`ip route delete 10.97.3.0/24 dev docker1`", "10.97.0.0/16 for pods"}},
		{route{Dst: "10.98.0.1", Dev: "lo", Table: "local"}, []string{"10.98.0.1 dev lo table local", "10.98.0.0/30 for its node", "CLUSTER=current"}},
		{route{Dst: "10.96.7.0/24", Dev: ""}, []string{"a route 10.96.7.0/24, and"}},
	} {
		err := conflict([]route{{Dst: "default", Dev: "eth0"}, used.route})
		if err == nil {
			t.Errorf("%v is taken", used.route)
			continue
		}
		for _, part := range used.says {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%v: %q is not in: %v", used.route, part, err)
			}
		}
	}
}

func TestRoutesAreNotLookedAtBeforeThereIsAProgramForIt(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if err := checkRoutes(); err != nil {
		t.Error(err)
	}
}

func TestControllersAreHandedDownOrTheMissingOneIsNamed(t *testing.T) {
	cgroup := func(controllers string) string {
		folder := t.TempDir()
		if err := os.WriteFile(filepath.Join(folder, "cgroup.controllers"), []byte(controllers), 0o600); err != nil {
			t.Fatal(err)
		}
		return folder
	}
	enabled := func(folder string) string {
		// The kernel would add them up; in a file the last one is left.
		data, _ := os.ReadFile(filepath.Join(folder, "cgroup.subtree_control"))
		return string(data)
	}
	parent, root := cgroup("cpuset cpu io memory pids\n"), cgroup("cpuset cpu memory pids\n")
	if err := handDown(parent, root); err != nil {
		t.Error(err)
	}
	if enabled(parent) != "+pids" || enabled(root) != "+pids" {
		t.Errorf("enabled %q, and one level further down %q", enabled(parent), enabled(root))
	}
	var refused unsupported
	if err := handDown(parent, cgroup("cpuset cpu pids\n")); !errors.As(err, &refused) || !strings.Contains(err.Error(), "memory") {
		t.Errorf("without memory: %v", err)
	}
	// The hierarchy without controllers that stands beside those of v1, and those.
	if err := handDown(cgroup("\n"), cgroup("\n")); err != nil {
		t.Error(err)
	}
	if err := handDown(t.TempDir(), t.TempDir()); err != nil {
		t.Error(err)
	}
}

func TestADNSQuestionIsWellFormed(t *testing.T) {
	// RFC 1035, section 4.1.2: labels with their lengths, an empty one, type A, class IN.
	got := dnsQuery("a", "bc")[12:]
	if want := []byte("\x01a\x02bc\x00\x00\x01\x00\x01"); !bytes.Equal(got, want) {
		t.Errorf("the question is %q, want %q", got, want)
	}
}

func TestThePauseArchiveHoldsWhatItsManifestNames(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "pause")
	if err := os.WriteFile(binary, []byte("program"), 0o755); err != nil {
		t.Fatal(err)
	}
	archive, err := pauseArchive(binary)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(archive)); ; {
		header, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		files[header.Name], _ = io.ReadAll(r)
	}
	var manifest []struct {
		Config           string
		RepoTags, Layers []string
	}
	if err := json.Unmarshal(files["manifest.json"], &manifest); err != nil {
		t.Fatal(err)
	}
	if len(manifest) != 1 || manifest[0].RepoTags[0] != pauseImage || files[manifest[0].Config] == nil {
		t.Fatalf("manifest: %s", files["manifest.json"])
	}
	layer := tar.NewReader(bytes.NewReader(files[manifest[0].Layers[0]]))
	header, err := layer.Next()
	if err != nil || header.Name != "pause" || header.Mode&0o111 == 0 {
		t.Errorf("the layer holds %+v, %v", header, err)
	}
}

func TestTheAdministratorsCredentialsArePrivateAndComplete(t *testing.T) {
	l := layout{t.TempDir()}
	if err := writePKI(l); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(l.kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the administrator's credentials have mode %v", info.Mode().Perm())
	}
	if _, err := newAPI(l).connect(); err != nil {
		t.Error(err)
	}
}
