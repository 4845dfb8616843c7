package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
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
