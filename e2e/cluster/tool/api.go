package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// apiClient is the few calls this tool makes, as the cluster's administrator. client-go would
// make a tool that compiles in two seconds one that compiles in a minute.
type apiClient struct {
	layout layout
	once   sync.Once
	client *http.Client
	err    error
}

func newAPI(l layout) *apiClient { return &apiClient{layout: l} }

func (a *apiClient) connect() (*http.Client, error) {
	a.once.Do(func() {
		pair, err := tls.LoadX509KeyPair(a.layout.pki("admin.crt"), a.layout.pki("admin.key"))
		if err != nil {
			a.err = err
			return
		}
		ca, err := os.ReadFile(a.layout.pki("ca.crt"))
		if err != nil {
			a.err = err
			return
		}
		roots := x509.NewCertPool()
		roots.AppendCertsFromPEM(ca)
		a.client = &http.Client{
			Timeout: 20 * time.Second,
			Transport: &http.Transport{
				// No Proxy: the address is never beyond this machine.
				TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots},
			},
		}
	})
	return a.client, a.err
}

func (a *apiClient) call(method, path, contentType string, body, into any) error {
	client, err := a.connect()
	if err != nil {
		return err
	}
	var reader io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return err
		}
		reader = bytes.NewReader(data)
	}
	request, err := http.NewRequest(method, apiURL+path, reader)
	if err != nil {
		return err
	}
	request.Header.Set("Accept", "application/json")
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode >= 300 {
		text := strings.TrimSpace(string(data))
		var status struct{ Message string }
		if json.Unmarshal(data, &status) == nil && status.Message != "" {
			text = status.Message
		}
		return fmt.Errorf("%s %s: %s: %s", method, path, response.Status, text)
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(data, into)
}

func (a *apiClient) get(path string, into any) error { return a.call("GET", path, "", nil, into) }

func (a *apiClient) apply(path string, object any) error {
	return a.call("PATCH", path+"?fieldManager=graftwork-cluster&force=true", "application/apply-patch+yaml", object, nil)
}

func (a *apiClient) mergePatch(path string, patch any) error {
	return a.call("PATCH", path, "application/merge-patch+json", patch, nil)
}

func (a *apiClient) ready() error {
	client, err := a.connect()
	if err != nil {
		return err
	}
	response, err := client.Get(apiURL + "/readyz")
	if err != nil {
		return err
	}
	defer response.Body.Close()
	data, _ := io.ReadAll(response.Body)
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("API server not ready: %s", firstLine(string(data)))
	}
	return nil
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	return line
}
