package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pem         []byte
}

type certificateSpec struct {
	commonName    string
	organizations []string
	names         []string
	addresses     []string
	server        bool
}

// certificates live for a year: a cluster is made anew by every `up`.
const certificateLife = 365 * 24 * time.Hour

func newSerial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
}

func writeKey(file string, key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	data := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	return data, os.WriteFile(file, data, 0o600)
}

func newAuthority(l layout, name string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "graftwork " + name},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(certificateLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	data := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(l.pki(name+".crt"), data, 0o644); err != nil {
		return nil, err
	}
	if _, err := writeKey(l.pki(name+".key"), key); err != nil {
		return nil, err
	}
	return &authority{certificate, key, data}, nil
}

// issue writes pki/<file>.crt and pki/<file>.key and returns both as PEM.
func (a *authority) issue(l layout, file string, spec certificateSpec) (cert, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: spec.commonName, Organization: spec.organizations},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.Add(certificateLife),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		DNSNames:     spec.names,
	}
	if spec.server {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	for _, address := range spec.addresses {
		template.IPAddresses = append(template.IPAddresses, net.ParseIP(address))
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, &private.PublicKey, a.key)
	if err != nil {
		return nil, nil, err
	}
	cert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(l.pki(file+".crt"), cert, 0o644); err != nil {
		return nil, nil, err
	}
	key, err = writeKey(l.pki(file+".key"), private)
	return cert, key, err
}

// writePKI makes every key and certificate of the cluster, and a kubeconfig for each client.
func writePKI(l layout) error {
	if err := os.MkdirAll(l.path("pki"), 0o700); err != nil {
		return err
	}
	ca, err := newAuthority(l, "ca")
	if err != nil {
		return err
	}
	frontProxy, err := newAuthority(l, "front-proxy-ca")
	if err != nil {
		return err
	}
	servers := map[string]certificateSpec{
		"apiserver": {
			commonName: "kube-apiserver", server: true,
			names: []string{"kubernetes", "kubernetes.default", "kubernetes.default.svc",
				"kubernetes.default.svc." + clusterDomain, "localhost", nodeName},
			addresses: []string{nodeAddress, apiService, "127.0.0.1"},
		},
		"kubelet-server": {
			commonName: "system:node:" + nodeName, organizations: []string{"system:nodes"}, server: true,
			names: []string{nodeName}, addresses: []string{nodeAddress, "127.0.0.1"},
		},
		"apiserver-kubelet-client": {
			commonName: "kube-apiserver-kubelet-client", organizations: []string{"system:masters"},
		},
	}
	for file, spec := range servers {
		if _, _, err := ca.issue(l, file, spec); err != nil {
			return fmt.Errorf("certificate %s: %w", file, err)
		}
	}
	if _, _, err := frontProxy.issue(l, "front-proxy-client", certificateSpec{commonName: "front-proxy-client"}); err != nil {
		return err
	}
	clients := map[string]certificateSpec{
		"admin":                   {commonName: "graftwork-admin", organizations: []string{"system:masters"}},
		"kube-controller-manager": {commonName: "system:kube-controller-manager"},
		"kube-scheduler":          {commonName: "system:kube-scheduler"},
		"kube-proxy":              {commonName: "system:kube-proxy"},
		"kubelet":                 {commonName: "system:node:" + nodeName, organizations: []string{"system:nodes"}},
		"coredns":                 {commonName: "system:coredns"},
	}
	if err := os.MkdirAll(l.path("config"), 0o755); err != nil {
		return err
	}
	for name, spec := range clients {
		cert, key, err := ca.issue(l, name, spec)
		if err != nil {
			return fmt.Errorf("certificate %s: %w", name, err)
		}
		file := l.clientConfig(name)
		if name == "admin" {
			file = l.kubeconfig()
		}
		if err := writeKubeconfig(file, name, ca.pem, cert, key); err != nil {
			return err
		}
	}
	accounts, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	_, err = writeKey(l.pki("service-accounts.key"), accounts)
	return err
}

// writeKubeconfig writes JSON, which is YAML. The credentials are inside, so that the file can
// be copied elsewhere as it is.
func writeKubeconfig(file, user string, ca, cert, key []byte) error {
	encode := base64.StdEncoding.EncodeToString
	named := func(name, kind string, value any) []any {
		return []any{map[string]any{"name": name, kind: value}}
	}
	data, err := json.MarshalIndent(map[string]any{
		"apiVersion": "v1",
		"kind":       "Config",
		"clusters": named("graftwork", "cluster", map[string]any{
			"server": apiURL, "certificate-authority-data": encode(ca)}),
		"users": named(user, "user", map[string]any{
			"client-certificate-data": encode(cert), "client-key-data": encode(key)}),
		"contexts": named("graftwork", "context", map[string]any{
			"cluster": "graftwork", "user": user}),
		"current-context": "graftwork",
	}, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, append(data, '\n'), 0o600)
}
