// The cluster tool: a real one-node Kubernetes on this machine, for the demo and for tests.
//
// Everything of the cluster runs in a pid, a mount and a network namespace of its own. Ending
// the namespace's first process ends all of it, and with the last process the kernel removes
// its mounts, bridges, pod networks and packet filter rules. What is left for `down` are one
// veth pair (gone with the namespace too), one cgroup, a few sysctls and the state folder.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"
)

const usage = `usage: cluster COMMAND [FLAG...]

  up             start the cluster, or find it running
  down           stop it and remove everything it left on this machine
  check          say whether this machine's cluster may be used (exit code 3 or 4 if not)
  status         what runs, whose it is, and where its files are
  path WHAT      print one path: kubeconfig, bin, state, logs, audit, volumes, containerd-socket
  enter CMD...   run a command inside the node's namespaces

flags of up, down and check:
  --owner demo|test   whose cluster it is (default demo)
  --owner-pid PID     with test: the process whose end takes the cluster down
  --clone FOLDER      the clone it belongs to
flag of down:
  --force             also when a live owner of another purpose or clone has it

exit codes: 1 failed, 2 wrong usage, 3 a live owner has the cluster, 4 cannot run on this machine
`

func main() {
	if len(os.Args) < 2 {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(exitUsage)
	}
	err := run(os.Args[1], os.Args[2:])
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "cluster:", err)
	var refused owned
	var elsewhere unsupported
	switch {
	case errors.As(err, &refused):
		os.Exit(exitOwned)
	case errors.As(err, &elsewhere):
		os.Exit(exitUnsupported)
	case errors.Is(err, errUsage):
		os.Exit(exitUsage)
	}
	os.Exit(exitFailed)
}

var errUsage = errors.New("wrong usage, see `cluster` without arguments")

func run(name string, args []string) error {
	out := newPrinter()
	switch name {
	case "up":
		q, _, err := parseRequest(name, args)
		if err != nil {
			return err
		}
		return up(out, q)
	case "down":
		q, force, err := parseRequest(name, args)
		if err != nil {
			return err
		}
		return down(out, q, force)
	case "check":
		q, _, err := parseRequest(name, args)
		if err != nil {
			return err
		}
		if err := check(q); err != nil {
			return err
		}
		return checkRoutes()
	case "status":
		return status()
	case "path":
		if len(args) != 1 {
			return errUsage
		}
		return printPath(args[0])
	case "enter":
		if len(args) == 0 {
			return errUsage
		}
		return withRunning(func(r *record) error {
			line := append([]string{"nsenter", "-t", strconv.Itoa(r.Node.Pid), "-m", "-n", "-p", "--"}, args...)
			return syscall.Exec("/usr/bin/nsenter", line, os.Environ())
		})
	case "keep":
		if len(args) != 1 {
			return errUsage
		}
		return keep(args[0])
	case "node":
		if len(args) != 1 {
			return errUsage
		}
		return node(args[0])
	}
	fmt.Fprint(os.Stderr, usage)
	return errUsage
}

func parseRequest(name string, args []string) (request, bool, error) {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	purpose := flags.String("owner", purposeDemo, "demo or test")
	pid := flags.String("owner-pid", "", "the test's process")
	clone := flags.String("clone", os.Getenv("GRAFTWORK_CLONE"), "the clone")
	force := flags.Bool("force", false, "take down another owner's cluster")
	if err := flags.Parse(args); err != nil || flags.NArg() > 0 {
		return request{}, false, errUsage
	}
	q := request{purpose: *purpose, clone: *clone}
	switch *purpose {
	case purposeDemo:
	case purposeTest:
		if *pid == "" && name == "up" {
			return q, false, fmt.Errorf("--owner test needs --owner-pid: %w", errUsage)
		}
		if *pid != "" {
			owner, err := parsePid(*pid)
			if err != nil {
				return q, false, err
			}
			q.owner = owner
		}
	default:
		return q, false, fmt.Errorf("--owner is demo or test: %w", errUsage)
	}
	return q, *force, nil
}

func withRunning(work func(*record) error) error {
	r, err := readRecord()
	if err != nil {
		return err
	}
	if r == nil || !r.running() {
		return errors.New("no cluster is running")
	}
	return work(r)
}

func printPath(what string) error {
	l := stateLayout()
	if r, err := readRecord(); err == nil && r != nil {
		l = layout{r.State}
	}
	paths := map[string]string{
		"kubeconfig": l.kubeconfig(), "bin": l.bin(), "state": l.root, "logs": l.logs(), "audit": l.auditLog(),
		"volumes": l.volumes(), "containerd-socket": l.containerdSocket(),
	}
	path, ok := paths[what]
	if !ok {
		return errUsage
	}
	fmt.Println(path)
	return nil
}

// status exits with 0 only for a cluster that can be used.
func status() error {
	r, err := readRecord()
	if err != nil {
		return err
	}
	state, why := "stopped", error(nil)
	switch {
	case r == nil:
	case !r.running():
		state = "stale"
	default:
		state = "running"
		if why = healthy(layout{r.State}, time.Now().Add(-90*time.Second)); why != nil {
			state = "unhealthy"
		}
	}
	fmt.Printf("cluster     %s\n", state)
	if why != nil {
		fmt.Printf("because     %v\n", why)
	}
	if r != nil {
		l := layout{r.State}
		fmt.Printf("owner       %s, of %s, since %s\n", r.Purpose, r.Clone, r.Started.Local().Format(time.DateTime))
		fmt.Printf("node        process %d, Kubernetes %s\n", r.Node.Pid, kubernetesVersion)
		fmt.Printf("kubeconfig  %s\naudit log   %s\nlogs        %s\nprograms    %s\n", l.kubeconfig(), l.auditLog(), l.logs(), l.bin())
	}
	if state != "running" {
		os.Exit(exitFailed)
	}
	return nil
}
