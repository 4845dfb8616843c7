package main

// Tests of the cluster itself, on this machine. They start and kill real clusters, so they run
// only when asked for, as root, with GRAFTWORK_CLUSTER_SELFTEST=1, and one after the other.

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestCluster(t *testing.T) {
	if os.Getenv("GRAFTWORK_CLUSTER_SELFTEST") == "" {
		t.Skip("starts real clusters; ask for it with GRAFTWORK_CLUSTER_SELFTEST=1")
	}
	s := &selftest{t: t, clone: t.TempDir()}
	if code, said := s.cluster("check", "--owner", "test", "--owner-pid", s.pid()); code != 0 {
		t.Fatalf("the cluster is in use: %s", said)
	}
	// Whatever an earlier, killed run left is not what these tests are to compare with.
	s.must("down", "--owner", "test")
	s.before = snapshot()
	t.Cleanup(func() { s.cluster("down", "--owner", "test", "--force") })

	for _, story := range []struct {
		name string
		run  func(*selftest)
	}{
		{"SetupEnablesNoDaemon", (*selftest).setupEnablesNoDaemon},
		{"TwoRunsInARow", (*selftest).twoRunsInARow},
		{"DaemonsThatDieComeBack", (*selftest).daemonsThatDieComeBack},
		{"PodsReachEachOtherWithoutBridgeNetfilter", (*selftest).podsReachEachOtherWithoutBridgeNetfilter},
		{"WhatIsNotAllowedIsRefused", (*selftest).whatIsNotAllowedIsRefused},
		{"VolumesAreOfferedAgain", (*selftest).volumesAreOfferedAgain},
		{"UpAfterEverythingWasKilled", (*selftest).upAfterEverythingWasKilled},
		{"UpAfterTheMachineRestarted", (*selftest).upAfterTheMachineRestarted},
		{"UpAfterAStartWasKilled", (*selftest).upAfterAStartWasKilled},
		{"UpRightAfterAnotherClonesRunWasKilled", (*selftest).upRightAfterAnotherClonesRunWasKilled},
		{"AKilledOwnerTakesItsClusterAlong", (*selftest).aKilledOwnerTakesItsClusterAlong},
		{"ADemoIsNotDisturbed", (*selftest).aDemoIsNotDisturbed},
	} {
		if !t.Run(story.name, func(t *testing.T) {
			s.t = t
			start := time.Now()
			story.run(s)
			t.Logf("%.1f s", time.Since(start).Seconds())
		}) {
			t.FailNow()
		}
	}
}

type selftest struct {
	t      *testing.T
	clone  string
	before map[string]string
}

func (s *selftest) pid() string { return strconv.Itoa(os.Getpid()) }

// cluster calls the tool as a Makefile does.
func (s *selftest) cluster(args ...string) (code int, said string) {
	return s.clusterOf(s.clone, args...)
}

func (s *selftest) clusterOf(clone string, args ...string) (code int, said string) {
	c := exec.Command("../cluster", args...)
	c.Env = append(os.Environ(), "GRAFTWORK_CLONE="+clone)
	out, err := c.CombinedOutput()
	if _, exited := err.(*exec.ExitError); err != nil && !exited {
		s.t.Fatal(err)
	}
	return c.ProcessState.ExitCode(), string(out)
}

// run calls what is behind `make COMMAND`, as another clone than that of the tests, and ends it where it takes longer
// than it may.
func (s *selftest) run(limit time.Duration, command string) (code int, said string) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	c := exec.CommandContext(ctx, "../../run", command)
	c.Env = append(os.Environ(), "CLUSTER=local", "STORIES=")
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.WaitDelay = 10 * time.Second
	out, _ := c.CombinedOutput()
	return c.ProcessState.ExitCode(), string(out)
}

func (s *selftest) must(args ...string) string {
	s.t.Helper()
	code, said := s.cluster(args...)
	if code != 0 {
		s.t.Fatalf("cluster %s: exit code %d: %s", strings.Join(args, " "), code, said)
	}
	return said
}

func (s *selftest) up()   { s.t.Helper(); s.must("up", "--owner", "test", "--owner-pid", s.pid()) }
func (s *selftest) down() { s.t.Helper(); s.must("down", "--owner", "test"); s.leavesNothing() }

func (s *selftest) leavesNothing() {
	s.t.Helper()
	after := snapshot()
	for what, then := range s.before {
		if now := after[what]; now != then {
			s.t.Errorf("%s changed.\nbefore:\n%s\nafter:\n%s", what, then, now)
		}
	}
}

func (s *selftest) tryKubectl(args ...string) (string, error) {
	l := stateLayout()
	c := exec.Command(filepath.Join(l.bin(), "kubectl"), append([]string{"--kubeconfig", l.kubeconfig()}, args...)...)
	out, err := c.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (s *selftest) kubectl(args ...string) string {
	s.t.Helper()
	out, err := s.tryKubectl(args...)
	if err != nil {
		s.t.Fatalf("kubectl %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return out
}

func (s *selftest) eventually(limit time.Duration, what string, check func() error) {
	s.t.Helper()
	if err := until(limit, func(string) {}, check); err != nil {
		s.t.Fatalf("%s: %v", what, err)
	}
}

// startPod runs a pod with a claim of each access mode: mounts, links and cgroups to be left behind by a kill.
func (s *selftest) startPod() {
	s.t.Helper()
	c := exec.Command(filepath.Join(stateLayout().bin(), "kubectl"), "--kubeconfig", stateLayout().kubeconfig(), "apply", "-f", "-")
	c.Stdin = strings.NewReader(`
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: claim}
spec: {accessModes: [ReadWriteMany], resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: once}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: pod}
spec:
  containers:
  - {name: pause, image: "` + pauseImage + `", imagePullPolicy: Never, volumeMounts: [{name: data, mountPath: /data}, {name: once, mountPath: /once}]}
  volumes: [{name: data, persistentVolumeClaim: {claimName: claim}}, {name: once, persistentVolumeClaim: {claimName: once}}]
`)
	if out, err := c.CombinedOutput(); err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
	if said, err := s.tryKubectl("wait", "--for=condition=Ready", "pod/pod", "--timeout=60s"); err != nil {
		events, _ := s.tryKubectl("get", "pods,pvc,events", "-A", "-o", "wide")
		s.t.Fatalf("the pod does not start: %s\n%s\n%s", said, events, logTails(stateLayout()))
	}
}

func (s *selftest) record() *record {
	s.t.Helper()
	r, err := readRecord()
	if err != nil || r == nil {
		s.t.Fatalf("no record: %v", err)
	}
	return r
}

// inside lists the processes of the node's pid namespace.
func (s *selftest) inside() []process {
	space, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", s.record().Node.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	var all []process
	entries, _ := filepath.Glob("/proc/[0-9]*/ns/pid")
	for _, entry := range entries {
		if its, err := os.Readlink(entry); err == nil && its == space {
			if p, err := parsePid(strings.Split(entry, "/")[2]); err == nil {
				all = append(all, p)
			}
		}
	}
	return all
}

// killEverything sends SIGKILL to each process of the cluster, the keeper first.
func (s *selftest) killEverything() {
	s.t.Helper()
	all := append([]process{s.record().Keeper}, s.inside()...)
	if len(all) < 10 {
		s.t.Fatalf("only %d processes to kill", len(all))
	}
	for _, p := range all {
		_ = syscall.Kill(p.Pid, syscall.SIGKILL)
	}
	s.eventually(10*time.Second, "end of the killed processes", func() error {
		for _, p := range all {
			if p.alive() {
				return fmt.Errorf("process %d still runs", p.Pid)
			}
		}
		return nil
	})
}

func (s *selftest) twoRunsInARow() {
	for range 2 {
		s.up()
		s.startPod()
		node := s.record().Node
		s.up()
		if s.record().Node != node {
			s.t.Error("up started a healthy cluster anew")
		}
		if code, said := s.cluster("status"); code != 0 {
			s.t.Errorf("status of a running cluster: exit code %d: %s", code, said)
		}
		s.down()
	}
	if code, _ := s.cluster("status"); code == 0 {
		s.t.Error("status of a stopped cluster: exit code 0")
	}
	s.must("down", "--owner", "test")
}

func (s *selftest) daemonsThatDieComeBack() {
	s.up()
	s.startPod()
	node := s.record().Node
	killed := 0
	for _, p := range s.inside() {
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.Pid))
		name := filepath.Base(string(bytes.SplitN(line, []byte{0}, 2)[0]))
		if name == "etcd" || name == "containerd" || name == "coredns" || strings.HasPrefix(name, "kube") {
			_ = syscall.Kill(p.Pid, syscall.SIGKILL)
			killed++
		}
	}
	if killed != 8 {
		s.t.Fatalf("killed %d daemons, want all 8", killed)
	}
	s.up()
	if s.record().Node != node {
		s.t.Error("up started the node anew although its daemons come back by themselves")
	}
	// The scheduler and the kubelet work again: a new pod runs beside the old one.
	s.kubectl("run", "another", "--image="+pauseImage, "--image-pull-policy=Never")
	s.kubectl("wait", "--for=condition=Ready", "pod/another", "--timeout=60s")
	if restarts := s.kubectl("get", "pod", "pod", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"); restarts != "0" {
		s.t.Errorf("the pod was restarted %s times", restarts)
	}
}

// podsReachEachOtherWithoutBridgeNetfilter: by a Service, on one bridge, as kernels without that module do it.
func (s *selftest) podsReachEachOtherWithoutBridgeNetfilter() {
	s.must("enter", "sh", "-c", "[ ! -e /proc/sys/net/bridge/bridge-nf-call-iptables ] || echo 0 >/proc/sys/net/bridge/bridge-nf-call-iptables")
	s.kubectl("expose", "pod", "another", "--port=8000")
	address := s.kubectl("get", "service", "another", "-o", "jsonpath={.spec.clusterIP}")
	server := exec.Command("nsenter", "-t", s.inNetworkOf("another"), "-n",
		"python3", "-m", "http.server", "8000", "--bind", "0.0.0.0", "--directory", s.t.TempDir())
	if err := server.Start(); err != nil {
		s.t.Fatal(err)
	}
	defer func() { server.Process.Kill(); server.Wait() }()
	asker := s.inNetworkOf("pod")
	s.eventually(20*time.Second, "an answer by the Service "+address, func() error {
		out, err := exec.Command("nsenter", "-t", asker, "-n",
			"curl", "-sS", "--noproxy", "*", "--max-time", "2", "http://"+address+":8000/").CombinedOutput()
		if err != nil {
			return fmt.Errorf("%v: %s", err, out)
		}
		return nil
	})
	s.kubectl("delete", "service", "another")
}

// inNetworkOf is the pid of a process in the pod's network namespace.
func (s *selftest) inNetworkOf(pod string) string {
	s.t.Helper()
	address := s.kubectl("get", "pod", pod, "-o", "jsonpath={.status.podIP}")
	// Pods have pid namespaces of their own below the node's, and the cgroups that the kubelet gives them.
	entries, _ := filepath.Glob("/proc/[0-9]*/cgroup")
	for _, entry := range entries {
		if of, err := os.ReadFile(entry); err != nil || !strings.Contains(string(of), "kubepods") {
			continue
		}
		pid := strings.Split(entry, "/")[2]
		out, _ := exec.Command("nsenter", "-t", pid, "-n", "ip", "-4", "-brief", "address").Output()
		if address != "" && strings.Contains(string(out), " "+address+"/") {
			return pid
		}
	}
	s.t.Fatalf("no process has the address %q of the pod %s", address, pod)
	return ""
}

// whatIsNotAllowedIsRefused: by Pod Security, by the roles of an account that has none, by the authorizer of nodes and by
// NodeRestriction.
func (s *selftest) whatIsNotAllowedIsRefused() {
	s.kubectl("create", "namespace", "strict")
	s.kubectl("label", "namespace", "strict", "pod-security.kubernetes.io/enforce=restricted")
	s.eventually(20*time.Second, "the namespace's account", func() error {
		_, err := s.tryKubectl("get", "serviceaccount", "default", "--namespace=strict")
		return err
	})
	another := []string{"--as=system:node:another", "--as-group=system:nodes"}
	for _, call := range []struct {
		args []string
		as   []string
		said string
	}{
		{[]string{"run", "any", "--image=" + pauseImage, "--namespace=strict"}, nil, "violates PodSecurity"},
		{[]string{"get", "pods", "--namespace=strict"}, []string{"--as=system:serviceaccount:strict:default"}, "(Forbidden)"},
		{[]string{"get", "secrets", "--namespace=strict"}, another, "(Forbidden)"},
		{[]string{"label", "node", nodeName, "a=b"}, another, "(Forbidden)"},
	} {
		args := append(call.args, call.as...)
		if said, err := s.tryKubectl(args...); err == nil || !strings.Contains(said, call.said) {
			s.t.Errorf("kubectl %s: not %q but %q", strings.Join(args, " "), call.said, said)
		}
	}
	// What is refused above is let through for who may, and accounts get tokens.
	s.kubectl("get", "secrets", "--namespace=strict")
	if token := s.kubectl("create", "token", "default", "--namespace=strict"); strings.Count(token, ".") != 2 {
		s.t.Errorf("%q is no token", token)
	}
}

func (s *selftest) volumesAreOfferedAgain() {
	volume := s.kubectl("get", "pvc", "claim", "-o", "jsonpath={.spec.volumeName}")
	folder := filepath.Join(stateLayout().volumes(), volume)
	info, err := os.Stat(folder)
	if err != nil || info.Mode().Perm() != 0o777 {
		s.t.Fatalf("the volume's folder: %v, %v", info, err)
	}
	if err := os.WriteFile(filepath.Join(folder, "file"), []byte("text"), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.kubectl("delete", "pod", "pod", "--wait", "--grace-period=1")
	s.kubectl("delete", "pvc", "claim", "--wait")
	s.eventually(20*time.Second, "the volume offered again", func() error {
		if phase := s.kubectl("get", "pv", volume, "-o", "jsonpath={.status.phase}"); phase != "Available" {
			return fmt.Errorf("phase %s", phase)
		}
		return nil
	})
	if entries, _ := os.ReadDir(folder); len(entries) != 0 {
		s.t.Errorf("the next claim would find %d files", len(entries))
	}
	s.down()
}

// setupEnablesNoDaemon calls setup.sh as on a machine that lacks everything, with an apt-get that only looks: what the
// package of containerd enables and starts is decided by the presets that stand there meanwhile.
func (s *selftest) setupEnablesNoDaemon() {
	release, _ := os.ReadFile("/etc/os-release")
	if !strings.Contains(string(release), "ID=debian\n") || !strings.Contains(string(release), `VERSION_ID="12"`) {
		s.t.Skip("packages are installed on Debian 12 only")
	}
	folder, presets := s.t.TempDir(), "/run/systemd/system-preset"
	for _, name := range []string{"bash", "cat", "cut", "dirname", "id", "mkdir", "rm", "rmdir", "sleep", "sort", "tail", "tr", "uname"} {
		program, err := exec.LookPath(name)
		if err != nil {
			s.t.Fatal(err)
		}
		if err := os.Symlink(program, filepath.Join(folder, name)); err != nil {
			s.t.Fatal(err)
		}
	}
	seen := filepath.Join(folder, "seen")
	apt := "#!/bin/bash\n" + `case " $* " in *" install "*" containerd "*) cat ` + presets + `/* >"` + seen + "\" ;; esac\n"
	if err := os.WriteFile(filepath.Join(folder, "apt-get"), []byte(apt), 0o755); err != nil {
		s.t.Fatal(err)
	}
	before, _ := os.ReadDir(presets)
	c := exec.Command("../setup.sh")
	c.Env = []string{"PATH=" + folder, "HOME=" + folder, "XDG_CACHE_HOME=" + folder}
	if out, err := c.CombinedOutput(); err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
	said, err := os.ReadFile(seen)
	if err != nil || !strings.Contains(string(said), "disable containerd.service\n") {
		s.t.Errorf("the presets while packages are installed: %q, %v", said, err)
	}
	if after, _ := os.ReadDir(presets); len(after) != len(before) {
		s.t.Errorf("%d files are in %s, %d were", len(after), presets, len(before))
	}
}

func (s *selftest) upAfterEverythingWasKilled() {
	s.up()
	s.startPod()
	s.killEverything()
	s.up()
	s.startPod()
	s.killEverything()
	s.down()
}

func (s *selftest) upAfterTheMachineRestarted() {
	s.up()
	s.startPod()
	s.killEverything()
	// What a restart leaves: a state folder with the copy of the record, of another boot.
	r := s.record()
	r.Boot = "another-boot"
	// A pid that is now somebody else's.
	r.Keeper, _ = identify(os.Getpid())
	if err := r.write(); err != nil {
		s.t.Fatal(err)
	}
	if err := os.RemoveAll(runDir); err != nil {
		s.t.Fatal(err)
	}
	if err := restoreSysctls(r.Sysctls); err != nil {
		s.t.Fatal(err)
	}
	s.up()
	s.startPod()
	s.down()
}

func (s *selftest) upAfterAStartWasKilled() {
	for _, after := range []time.Duration{100 * time.Millisecond, time.Second, 3 * time.Second} {
		c := exec.Command("../cluster", "up", "--owner", "test", "--owner-pid", s.pid())
		c.Env = append(os.Environ(), "GRAFTWORK_CLONE="+s.clone)
		if err := c.Start(); err != nil {
			s.t.Fatal(err)
		}
		time.Sleep(after)
		c.Process.Kill()
		c.Wait()
	}
	s.up()
	s.startPod()
	s.down()
}

func (s *selftest) upRightAfterAnotherClonesRunWasKilled() {
	other := s.t.TempDir()
	owner := sleeper(s.t)
	if code, said := s.clusterOf(other, "up", "--owner", "test", "--owner-pid", strconv.Itoa(owner.Process.Pid)); code != 0 {
		s.t.Fatal(said)
	}
	s.startPod()
	code, said := s.cluster("up", "--owner", "test", "--owner-pid", s.pid())
	if code != exitOwned || !strings.Contains(said, other) {
		s.t.Errorf("up while another clone's test runs: exit code %d: %s", code, said)
	}
	if code, said := s.cluster("down", "--owner", "test"); code != exitOwned {
		s.t.Errorf("down while another clone's test runs: exit code %d: %s", code, said)
	}
	owner.Process.Kill()
	owner.Wait()
	// At once: its keeper may or may not have begun to take the cluster down.
	s.up()
	if r := s.record(); r.Clone != s.clone {
		s.t.Errorf("the cluster is still of %s", r.Clone)
	}
	s.startPod()
	s.down()
}

func (s *selftest) aKilledOwnerTakesItsClusterAlong() {
	owner := sleeper(s.t)
	s.must("up", "--owner", "test", "--owner-pid", strconv.Itoa(owner.Process.Pid))
	s.startPod()
	owner.Process.Kill()
	owner.Wait()
	s.eventually(30*time.Second, "the cluster gone with its owner", func() error {
		if _, err := os.Stat(runDir); err == nil {
			return fmt.Errorf("%s is still there", runDir)
		}
		return nil
	})
	s.eventually(5*time.Second, "the keeper gone", func() error {
		if left := snapshot()["processes"]; left != s.before["processes"] {
			return fmt.Errorf("processes: %s", left)
		}
		return nil
	})
	s.leavesNothing()
}

func (s *selftest) aDemoIsNotDisturbed() {
	s.must("up", "--owner", "demo")
	node := s.record().Node
	for _, command := range []string{"check", "up"} {
		code, said := s.cluster(command, "--owner", "test", "--owner-pid", s.pid())
		if code != exitOwned || !strings.Contains(said, "make demo-down") {
			s.t.Errorf("%s while a demo runs: exit code %d: %s", command, code, said)
		}
	}
	for _, command := range []string{"test", "e2e"} {
		code, said := s.run(20*time.Second, command)
		if code != exitOwned || !strings.Contains(said, "make demo-down") || strings.Contains(said, "what this machine needs") {
			s.t.Errorf("make %s while a demo runs: exit code %d: %s", command, code, said)
		}
	}
	if code, _ := s.cluster("down", "--owner", "test"); code != exitOwned {
		s.t.Errorf("a test took the demo down: exit code %d", code)
	}
	if code, said := s.clusterOf("/another", "up"); code != exitOwned {
		s.t.Errorf("another clone's demo came up over it: exit code %d: %s", code, said)
	}
	if s.record().Node != node || !node.alive() {
		s.t.Error("the demo's node is not what it was")
	}
	// The way on that the refusal names works from the clone that was refused.
	if code, said := s.run(2*time.Minute, "demo-down"); code != 0 {
		s.t.Errorf("demo-down from another clone: exit code %d: %s", code, said)
	}
	s.leavesNothing()
}

// snapshot is everything of the machine that a cluster could leave behind.
func snapshot() map[string]string {
	lines := func(all []string) string { sort.Strings(all); return strings.Join(all, "\n") }
	run := func(name string, args ...string) string {
		out, _ := exec.Command(name, args...).Output()
		var kept []string
		for _, line := range strings.Split(string(out), "\n") {
			// Comments of iptables-save hold the time.
			if line != "" && !strings.HasPrefix(line, "#") {
				kept = append(kept, line)
			}
		}
		return lines(kept)
	}
	var links []struct{ Ifname string }
	out, _ := exec.Command("ip", "-json", "link").Output()
	_ = json.Unmarshal(out, &links)
	var names []string
	for _, link := range links {
		names = append(names, link.Ifname)
	}
	var groups, paths, processes []string
	for _, root := range cgroupRoots() {
		found, _ := filepath.Glob(root)
		groups = append(groups, found...)
		found, _ = filepath.Glob(filepath.Join(filepath.Dir(root), "kubepods*"))
		groups = append(groups, found...)
	}
	for _, path := range append([]string{runDir, stateLayout().root}, outsidePaths...) {
		if _, err := os.Lstat(path); err == nil {
			paths = append(paths, path)
		}
	}
	commands, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range commands {
		data, err := os.ReadFile(file)
		line := strings.ReplaceAll(string(data), "\x00", " ")
		if err == nil && (strings.Contains(line, stateLayout().root) || strings.Contains(line, "/cluster keep ")) {
			processes = append(processes, line)
		}
	}
	own, _ := os.Readlink("/proc/self/ns/net")
	spaces := map[string]bool{}
	entries, _ := filepath.Glob("/proc/[0-9]*/ns/net")
	for _, entry := range entries {
		if its, err := os.Readlink(entry); err == nil && its != own {
			spaces[its] = true
		}
	}
	sysctls, _ := json.Marshal(readSysctls())
	forward, _ := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	profiles, _ := os.ReadFile("/sys/kernel/security/apparmor/profiles")
	return map[string]string{
		"mounts":             lines(mountsUnder("")),
		"links":              lines(names),
		"routes":             run("ip", "route"),
		"packet filter":      run("iptables-save") + run("ip6tables-save"),
		"network namespaces": fmt.Sprint(len(spaces)),
		"cgroups":            lines(groups),
		"paths":              lines(paths),
		"processes":          lines(processes),
		"sysctls":            string(sysctls) + string(forward),
		"AppArmor profiles":  lines(strings.Split(string(profiles), "\n")),
	}
}
