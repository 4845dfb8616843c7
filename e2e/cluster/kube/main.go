// One binary that is every Kubernetes program of the one-node cluster: linking once instead of
// eight times saves minutes and about a gigabyte of disk.
//
// The program is the first argument, or the name the binary was called by (so that links named
// kubectl, etcd, ... work). Each program keeps its own flags and its own --help.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"context"
	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	"k8s.io/kubectl/pkg/cmd"
	"k8s.io/kubectl/pkg/cmd/util"
	kubeapiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	kubecontrollermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	kubeproxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	kubescheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

var programs = map[string]func() int{
	"coredns":                 runCoreDNS,
	"etcd":                    func() int { etcdmain.Main(os.Args); return 0 },
	"kube-apiserver":          cobraProgram(kubeapiserver.NewAPIServerCommand),
	"kube-controller-manager": cobraProgram(kubecontrollermanager.NewControllerManagerCommand),
	"kube-proxy":              cobraProgram(kubeproxy.NewProxyCommand),
	"kube-scheduler":          cobraProgram(func() *cobra.Command { return kubescheduler.NewSchedulerCommand() }),
	"kubelet":                 cobraProgram(func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) }),
	"kubectl":                 runKubectl,
}

func main() {
	name := filepath.Base(os.Args[0])
	if _, ok := programs[name]; !ok && len(os.Args) > 1 {
		os.Args = os.Args[1:]
		name = os.Args[0]
	}
	run, ok := programs[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "usage: kube PROGRAM [ARGUMENT...], where PROGRAM is one of %s\n", strings.Join(names(), ", "))
		os.Exit(2)
	}
	if name != "coredns" {
		hideCoreDNSFlags()
	}
	os.Exit(run())
}

func names() []string {
	all := make([]string, 0, len(programs))
	for name := range programs {
		all = append(all, name)
	}
	sort.Strings(all)
	return all
}

func cobraProgram(build func() *cobra.Command) func() int {
	return func() int { return cli.Run(build()) }
}

func runKubectl() int {
	command := cmd.NewDefaultKubectlCommand()
	if err := cli.RunNoErrOutput(command); err != nil {
		util.CheckErr(err)
		return 1
	}
	return 0
}

// CoreDNS registers `-p`, `-version`, `-quiet`, ... on the process-wide flag set when it is
// linked in; the other programs import that set and would clash with their own short flags.
// The set cannot simply be emptied: the kubelet insists on finding cAdvisor's flags there.
func hideCoreDNSFlags() {
	hidden := map[string]bool{
		"conf": true, "dns.port": true, "p": true, "pidfile": true,
		"plugins": true, "quiet": true, "version": true,
	}
	kept := flag.NewFlagSet(os.Args[0], flag.ExitOnError)
	flag.CommandLine.VisitAll(func(f *flag.Flag) {
		if !hidden[f.Name] {
			kept.Var(f.Value, f.Name, f.Usage)
		}
	})
	flag.CommandLine = kept
}
