"""The Tinker SDK's API in this process: `import lossbook.integrations.tinker as tinker`."""
