package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"
)

// wayOut ends every refusal that is about this machine rather than about the user's call.
const wayOut = "use a cluster of your own instead: `make demo CLUSTER=current`"

// unsupported is a refusal with exit code 4.
type unsupported struct{ reason string }

func (u unsupported) Error() string {
	return "a local cluster cannot run here: " + u.reason + "; " + wayOut
}

// owned is a refusal with exit code 3.
type owned struct{ sentence string }

func (o owned) Error() string { return o.sentence }

// programs the cluster takes from the distribution.
var needed = []string{"containerd", "containerd-shim-runc-v2", "ctr", "runc", "iptables", "iptables-save", "conntrack", "ip", "mount", "umount"}

const cniPlugins = "/usr/lib/cni"

func checkRoot() error {
	if os.Geteuid() != 0 {
		return unsupported{"it needs root"}
	}
	return nil
}

func checkMachine() error {
	if err := checkRoot(); err != nil {
		return err
	}
	var missing []string
	for _, program := range needed {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, program)
		}
	}
	for _, plugin := range []string{"bridge", "host-local", "portmap", "loopback"} {
		if _, err := os.Stat(filepath.Join(cniPlugins, plugin)); err != nil {
			missing = append(missing, "CNI plugin "+plugin)
		}
	}
	for _, program := range []string{"kube", "helm", "pause"} {
		if _, err := os.Stat(filepath.Join(kubeDir(), program)); err != nil || kubeDir() == "" {
			return fmt.Errorf("the program %s is not built: run e2e/cluster/cluster, which builds it", program)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("not installed: %s; run `make setup`", strings.Join(missing, ", "))
	}
	return nil
}

// globalSysctls are written by the kubelet and are the machine's, not the namespace's.
var globalSysctls = []string{
	"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
	"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes",
}

func readSysctls() map[string]string {
	values := map[string]string{}
	for _, name := range globalSysctls {
		if value, err := os.ReadFile("/proc/sys/" + name); err == nil {
			values[name] = strings.TrimSpace(string(value))
		}
	}
	return values
}

func restoreSysctls(values map[string]string) error {
	var failed []error
	for name, value := range values {
		now, err := os.ReadFile("/proc/sys/" + name)
		if err != nil || strings.TrimSpace(string(now)) == value {
			continue
		}
		if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0o644); err != nil {
			failed = append(failed, fmt.Errorf("put back sysctl %s: %w", name, err))
		}
	}
	return errors.Join(failed...)
}

// shadowed folders are written by containerd, its shims, CNI or the kubelet, which do not let us choose others. The
// node has a file system of its own at each: what it writes goes with it, and what the machine has there is neither
// seen nor touched.
var shadowed = []string{
	"/run/containerd", "/run/netns",
	"/var/lib/cni", "/var/lib/kubelet", "/var/log/containers", "/var/log/pods",
	"/opt/cni", "/opt/containerd", "/usr/libexec/kubernetes",
}

// xtablesLock is made by kube-proxy and the kubelet, and shared with every other writer of packet filter rules.
const xtablesLock = "/run/xtables.lock"

// outsidePaths may come to be outside the state folder.
var outsidePaths = append([]string{xtablesLock}, shadowed...)

func absentPaths() []string {
	var absent []string
	for _, path := range outsidePaths {
		if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
			absent = append(absent, path)
		}
	}
	return absent
}

// removeOutside removes what was not there before, unless somebody else has put something into it or uses it since.
func removeOutside(absent []string) error {
	var failed []error
	for _, path := range absent {
		info, err := os.Lstat(path)
		if err != nil || !info.IsDir() && !isFreeLock(path, info) {
			continue
		}
		// A folder that is not empty, or that something is mounted on, is refused by the kernel.
		err = os.Remove(path)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ENOTEMPTY) && !errors.Is(err, syscall.EBUSY) {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

// isFreeLock: an empty file on which nobody holds a lock now.
func isFreeLock(path string, info os.FileInfo) bool {
	if !info.Mode().IsRegular() || info.Size() != 0 {
		return false
	}
	file, err := os.Open(path)
	if err != nil {
		return false
	}
	defer file.Close()
	return syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil
}

// mountsUnder lists the mount points at and below path that this process sees, deepest first.
func mountsUnder(path string) []string {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	var mounts []string
	for _, line := range strings.Split(string(data), "\n") {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		point := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(fields[4])
		if point == path || strings.HasPrefix(point, path+"/") {
			mounts = append(mounts, point)
		}
	}
	sort.Slice(mounts, func(i, j int) bool { return len(mounts[i]) > len(mounts[j]) })
	return mounts
}

// removeState deletes the state folder. The cluster's mounts live in its own mount namespace
// and went with it; a mount that is nevertheless visible here is taken off first, since a
// recursive delete must never walk through one.
func removeState(state string) error {
	for _, point := range mountsUnder(state) {
		if err := syscall.Unmount(point, syscall.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", point, err)
		}
	}
	if left := mountsUnder(state); len(left) > 0 {
		return fmt.Errorf("still mounted: %s", strings.Join(left, ", "))
	}
	if err := os.RemoveAll(state); err != nil {
		return err
	}
	// The parent is shared with other parts of the project: gone only when empty.
	os.Remove(filepath.Dir(state))
	return nil
}

// cgroupRoots is the cluster's cgroup in each hierarchy: one with cgroup v2, one for each
// controller with v1.
func cgroupRoots() []string {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return []string{filepath.Join("/sys/fs/cgroup", cgroupName)}
	}
	var roots []string
	data, _ := os.ReadFile("/proc/self/mountinfo")
	for _, line := range strings.Split(string(data), "\n") {
		before, after, ok := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if ok && len(fields) >= 5 && (strings.HasPrefix(after, "cgroup ") || strings.HasPrefix(after, "cgroup2 ")) {
			roots = append(roots, filepath.Join(fields[4], cgroupName))
		}
	}
	return roots
}

// makeCgroups creates the folder that the kubelet is told to put all pods under: with a root
// of our own, everything in it is ours to end and remove.
func makeCgroups() error {
	for _, root := range cgroupRoots() {
		if err := os.MkdirAll(root, 0o755); err != nil {
			return err
		}
		parent := filepath.Dir(root)
		if err := handDown(parent, root); err != nil {
			return err
		}
		// cpuset (v1) starts empty, and a process cannot enter an empty one.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if value, err := os.ReadFile(filepath.Join(parent, file)); err == nil {
				if err := os.WriteFile(filepath.Join(root, file), value, 0o644); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// wantedControllers (v2) are those that the kubelet asks of its root where the machine has them: with one missing it
// does not start.
var wantedControllers = []string{"cpu", "cpuset", "hugetlb", "memory", "pids"}

// handDown (v2) gives the machine's controllers to the cluster's cgroup. In a hierarchy of v1, or in the one without
// controllers beside it, there is nothing to hand down.
func handDown(parent, root string) error {
	var failed error
	for _, controller := range controllersOf(parent) {
		// Not every controller can be handed down on every machine; that matters for the kubelet's only.
		failed = errors.Join(failed, enable(parent, controller))
	}
	here := controllersOf(root)
	for _, controller := range controllersOf(parent) {
		if slices.Contains(wantedControllers, controller) && !slices.Contains(here, controller) {
			return unsupported{fmt.Sprintf("the cgroup %s does not hand down the controller %s, which the kubelet needs (%v)",
				parent, controller, failed)}
		}
	}
	// In use one level further down, a controller can't be taken from us: systemd takes away, at any change of its
	// units, those that it knows no use for.
	for _, controller := range here {
		if err := enable(root, controller); err != nil {
			return err
		}
	}
	return nil
}

func controllersOf(cgroup string) []string {
	data, _ := os.ReadFile(filepath.Join(cgroup, "cgroup.controllers"))
	return strings.Fields(string(data))
}

func enable(cgroup, controller string) error {
	return os.WriteFile(filepath.Join(cgroup, "cgroup.subtree_control"), []byte("+"+controller), 0o644)
}

// removeCgroups ends whatever still runs in the cluster's cgroups and removes them: all
// hierarchies at once, because the kernel takes milliseconds for each of the thousands of
// folders that a hundred pods make.
func removeCgroups(limit time.Duration) error {
	end := time.Now().Add(limit)
	roots := cgroupRoots()
	failed := make([]error, len(roots))
	var workers sync.WaitGroup
	for i, root := range roots {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for {
				failed[i] = removeCgroup(root)
				if failed[i] == nil || time.Now().After(end) {
					return
				}
				time.Sleep(50 * time.Millisecond)
			}
		}()
	}
	workers.Wait()
	return errors.Join(failed...)
}

func removeCgroup(root string) error {
	var folders []string
	_ = filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			folders = append(folders, path)
		}
		return nil
	})
	var last error
	for i := len(folders) - 1; i >= 0; i-- {
		processes, _ := os.ReadFile(filepath.Join(folders[i], "cgroup.procs"))
		for _, text := range strings.Fields(string(processes)) {
			if p, err := parsePid(text); err == nil {
				_ = syscall.Kill(p.Pid, syscall.SIGKILL)
			}
		}
		if err := syscall.Rmdir(folders[i]); err != nil && !errors.Is(err, syscall.ENOENT) {
			last = fmt.Errorf("remove cgroup %s: %w", folders[i], err)
		}
	}
	return last
}

func linkExists(name string) bool {
	_, err := os.Stat("/sys/class/net/" + name)
	return err == nil
}

// removeLink takes the machine's end of the veth pair off, and with it its routes.
func removeLink() error {
	if !linkExists(hostLink) {
		return nil
	}
	err := command("ip", "link", "delete", hostLink)
	if err != nil && !linkExists(hostLink) {
		// The namespace of its other end went meanwhile, and took both along.
		return nil
	}
	return err
}

func command(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// keepersOf finds the processes that were started to keep r's cluster: its id is theirs alone.
func keepersOf(r *record) []process {
	var found []process
	commands, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range commands {
		line, err := os.ReadFile(file)
		if err != nil || !strings.HasSuffix(string(line), "\x00keep\x00"+r.id()+"\x00") {
			continue
		}
		if p, err := parsePid(strings.Split(file, "/")[2]); err == nil {
			found = append(found, p)
		}
	}
	return found
}

// teardown puts the machine back to what it was before r's cluster. Whoever calls it holds the
// lock. It may be called again after it failed or was killed half way.
func teardown(out *printer, r *record) error {
	// A pid of another boot belongs to somebody else.
	if r.Boot == bootID() {
		// The keeper first, or it would take the node's end for a crash. One that a killed start
		// left before it could write itself into the record is known by its command line.
		for _, keeper := range append(keepersOf(r), r.Keeper) {
			if keeper.Pid == os.Getpid() {
				continue
			}
			if err := keeper.kill(10 * time.Second); err != nil {
				return err
			}
		}
		// With the first process of a pid namespace the kernel ends all others in it, and the
		// last process takes the mount and network namespaces along: mounts, pod networks,
		// bridges and all iptables chains of the cluster.
		if err := out.step("stop all processes of the cluster", func(func(string)) error {
			return r.Node.kill(30 * time.Second)
		}); err != nil {
			return err
		}
	}
	return out.step("remove links, cgroups, state; restore sysctls", func(progress func(string)) error {
		if err := removeCgroups(time.Minute); err != nil {
			return err
		}
		// A restart has set the sysctls anew, perhaps to other values.
		var sysctls error
		if r.Boot == bootID() {
			sysctls = restoreSysctls(r.Sysctls)
		}
		if err := errors.Join(removeLink(), sysctls, removeOutside(r.Absent)); err != nil {
			return err
		}
		if err := removeState(r.State); err != nil {
			return err
		}
		return r.remove()
	})
}
