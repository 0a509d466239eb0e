/** Pages that need nothing else: no script, no host, plots drawn in the page. */
import { escapeHtml } from './plots.js'
import type { TitledTable } from './table.js'

const kStyle = `
:root { color-scheme: light dark; --ink: #1c1c1e; --paper: #fff; --faint: #c9c9ce;
  --c0: #3b6fd4; --c1: #d9822b; --c2: #2e9e5b; --c3: #b3478f; --c4: #7a6ad8; --c5: #8a7a2f;
  --c6: #c0392b; --c7: #1f8a9c; --c8: #6b7280; --c9: #a0522d }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6ea; --paper: #18181b; --faint: #4a4a52;
  --c0: #7aa5ff; --c1: #f0a860; --c2: #62c98d; --c3: #e08ac3; --c4: #a99bff; --c5: #cdbb63;
  --c6: #f08a7d; --c7: #67c7d6; --c8: #a8b0bd; --c9: #d59b76 } }
body { font: 14px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 1000px; margin: 2em auto; padding: 0 1em }
svg { width: 100%; max-width: 760px; display: block } svg text { font-size: 11px; fill: var(--ink) }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px }
.wide { overflow-x: auto } td, th { padding: 2px 10px; text-align: left; white-space: nowrap }
.right { text-align: right } thead { border-bottom: 1px solid var(--ink) }`

/** A page: its title, facts as pairs of a name and a text, and sections of HTML. */
export function formatPage(
  title: string,
  facts: readonly (readonly [string, string])[],
  sections: readonly string[],
): string {
  const rows = facts.map(
    ([name, value]) => `<tr><th>${escapeHtml(name)}</th><td>${escapeHtml(value)}</td></tr>`,
  )
  return `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escapeHtml(title)}</title>
<style>${kStyle}
</style>
</head>
<body>
<h1>${escapeHtml(title)}</h1>
<table>${rows.join('\n')}</table>
${sections.join('\n')}
</body>
</html>
`
}

/** A part of a page; `content` is HTML. */
export function section(title: string, content: string): string {
  return `<section><h2>${escapeHtml(title)}</h2>\n${content}</section>`
}

/** A table as a section of its own. */
export function tableSection({ title, columns, rows }: TitledTable): string {
  const cells = (tag: 'td' | 'th', texts: readonly string[]) =>
    texts
      .map((text, c) => {
        const name = columns[c]?.align === 'right' ? ' class="right"' : ''
        return `<${tag}${name}>${escapeHtml(text)}</${tag}>`
      })
      .join('')
  const head = cells(
    'th',
    columns.map((column) => column.title),
  )
  const body = rows.map((row) => `<tr>${cells('td', row)}</tr>`)
  const table = `<table><thead><tr>${head}</tr></thead>\n<tbody>${body.join('\n')}</tbody></table>`
  return section(title, `<div class="wide">${table}</div>`)
}
