package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// reaper waits for every child of this process. As the first process of its pid namespace the
// node inherits each orphan of the cluster (container shims above all), so it cannot leave
// waiting to exec.Cmd: one loop waits for all and tells whoever asked for a pid.
type reaper struct {
	mu      sync.Mutex
	waiting map[int]chan syscall.WaitStatus
}

func newReaper() *reaper {
	r := &reaper{waiting: map[int]chan syscall.WaitStatus{}}
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	go func() {
		for range children {
			r.collect()
		}
	}()
	return r
}

func (r *reaper) collect() {
	// Held over both the wait and the delivery: a child that ends before start has noted its
	// channel is not lost.
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if channel, ok := r.waiting[pid]; ok {
			delete(r.waiting, pid)
			channel <- status
		}
	}
}

// start begins a program; its end arrives on the channel.
func (r *reaper) start(c *exec.Cmd) (<-chan syscall.WaitStatus, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := c.Start(); err != nil {
		return nil, err
	}
	channel := make(chan syscall.WaitStatus, 1)
	r.waiting[c.Process.Pid] = channel
	return channel, nil
}

// run is start and wait, for short commands.
func (r *reaper) run(name string, args ...string) error {
	// Files and not pipes: exec.Cmd would copy from a pipe in a goroutine that only Wait ends.
	log, err := os.CreateTemp("", "graftwork-cluster-")
	if err != nil {
		return err
	}
	defer os.Remove(log.Name())
	defer log.Close()
	c := exec.Command(name, args...)
	c.Stdout, c.Stderr = log, log
	ended, err := r.start(c)
	if err != nil {
		return err
	}
	if status := <-ended; status.ExitStatus() != 0 {
		said, _ := os.ReadFile(log.Name())
		return fmt.Errorf("%s %v: exit status %d: %s", name, args, status.ExitStatus(), said)
	}
	return nil
}

// node is the first process inside the cluster's namespaces. It starts every daemon and starts
// again what ends; it never returns while the cluster is wanted.
func node(state string) error {
	// The keeper closes our standard input when the veth pair is there.
	_, _ = io.Copy(io.Discard, os.Stdin)

	l := layout{state}
	reap := newReaper()
	if err := prepareMounts(l); err != nil {
		return err
	}
	if err := prepareNetwork(reap); err != nil {
		return err
	}
	n := &supervisor{layout: l, reap: reap, restarted: make(chan string, 16)}
	go n.superviseAll()
	go recycleVolumes(l)
	select {}
}

func prepareMounts(l layout) error {
	// Mounts of the machine still arrive here, none of ours leaves.
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("make mounts private to the cluster: %w", err)
	}
	if err := syscall.Mount("proc", "/proc", "proc", syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc of the new pid namespace: %w", err)
	}
	for _, folder := range shadowed {
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount("tmpfs", folder, "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, "mode=755"); err != nil {
			return fmt.Errorf("mount over %s: %w", folder, err)
		}
	}
	// The kubelet wants its folder to be a shared mount, for volumes that containers mount.
	folder := l.path("kubelet")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	if err := syscall.Mount(folder, folder, "", syscall.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %s: %w", folder, err)
	}
	return syscall.Mount("", folder, "", syscall.MS_REC|syscall.MS_SHARED, "")
}

func prepareNetwork(reap *reaper) error {
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"address", "add", nodeAddress + linkPrefix, "dev", nodeLink},
		{"link", "set", nodeLink, "up"},
		// Some programs look for the machine's own address by the default route.
		{"route", "add", "default", "via", hostAddress},
	} {
		if err := reap.run("ip", args...); err != nil {
			return err
		}
	}
	return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644)
}

type supervisor struct {
	layout    layout
	reap      *reaper
	restarted chan string
}

// superviseAll starts the daemons in the order they need each other.
func (s *supervisor) superviseAll() {
	for _, name := range []string{"etcd", "containerd", "kube-apiserver"} {
		go s.supervise(name, nil)
	}
	clients := []string{"kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "coredns"}
	generations := make([]chan struct{}, len(clients))
	api := newAPI(s.layout)
	s.waitForAPI(api)
	for i, name := range clients {
		generations[i] = make(chan struct{}, 1)
		go s.supervise(name, generations[i])
	}
	for name := range s.restarted {
		if name != "kube-apiserver" && name != "etcd" {
			continue
		}
		// A client that lived through an outage may sit out a long back-off: seen with a
		// scheduler that stayed idle for over a minute.
		s.waitForAPI(api)
		for i, client := range clients {
			if client == "kube-controller-manager" || client == "kube-scheduler" {
				select {
				case generations[i] <- struct{}{}:
				default:
				}
			}
		}
	}
}

func (s *supervisor) waitForAPI(api *apiClient) {
	for api.ready() != nil {
		time.Sleep(100 * time.Millisecond)
	}
}

// supervise runs one daemon for ever. A message on again ends it, so that it starts afresh.
func (s *supervisor) supervise(name string, again <-chan struct{}) {
	for first := true; ; first = false {
		ended, c, err := s.startDaemon(name)
		if err != nil {
			fmt.Printf("%s: %v\n", name, err)
			time.Sleep(time.Second)
			continue
		}
		if !first {
			s.restarted <- name
		}
		select {
		case status := <-ended:
			fmt.Printf("%s %s ended (%s), starting it again\n", time.Now().Format(time.RFC3339), name, describe(status))
			time.Sleep(500 * time.Millisecond)
		case <-again:
			_ = c.Process.Signal(syscall.SIGKILL)
			<-ended
		}
	}
}

func describe(status syscall.WaitStatus) string {
	if status.Signaled() {
		return "signal " + status.Signal().String()
	}
	return fmt.Sprintf("exit status %d", status.ExitStatus())
}

func (s *supervisor) startDaemon(name string) (<-chan syscall.WaitStatus, *exec.Cmd, error) {
	log, err := os.OpenFile(filepath.Join(s.layout.logs(), name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, nil, err
	}
	defer log.Close()
	line := daemonCommand(s.layout, name)
	c := exec.Command(line[0], line[1:]...)
	c.Dir = s.layout.root
	c.Stdout, c.Stderr = log, log
	c.Env = daemonEnvironment(s.layout)
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	ended, err := s.reap.start(c)
	return ended, c, err
}
