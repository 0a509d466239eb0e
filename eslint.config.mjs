// Biome formats and lints; here are only the rules that need types.
import tseslint from 'typescript-eslint'

export default tseslint.config(
  {
    files: ['lib/**/*.ts', 'test/**/*.ts', 'scripts/**/*.ts'],
    languageOptions: {
      parser: tseslint.parser,
      parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname },
    },
    plugins: { '@typescript-eslint': tseslint.plugin },
    rules: {
      '@typescript-eslint/await-thenable': 'error',
      '@typescript-eslint/no-floating-promises': ['error', { checkThenables: true }],
      '@typescript-eslint/no-misused-promises': 'error',
      '@typescript-eslint/switch-exhaustiveness-check': [
        'error',
        { considerDefaultExhaustiveForUnions: true },
      ],
    },
  },
  {
    // An async function rejects and never throws at the call. That a library's promise is handed on
    // as it is shows in no types, so those that hand one on are async, too.
    files: ['lib/**/*.ts'],
    plugins: { '@typescript-eslint': tseslint.plugin },
    rules: {
      '@typescript-eslint/promise-function-async': ['error', { checkArrowFunctions: false }],
    },
  },
)
